"""The pipeline's shape: which stages dvc.yaml expands to, and that each tracks the parameters its command reads."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, get_args
from unittest.mock import MagicMock

import pytest

from relinv import generation
from relinv.diffusion.sampling import SCHEDULERS
from relinv.exemplars import OWN
from relinv.fetching.fetch import PLACED
from relinv.files import read_yaml
from relinv.images import SAMPLERS
from relinv.learning import inversion
from relinv.params import load_params
from relinv.plugins import plugin_names
from relinv.report.story import as_yaml
from relinv.settings import Scheduler

RELATIONS = ["painted_on", "carved_by", "shake_hands", "hug", "back2back", "inside", "on", "hanging_from",
             "wrapped_in", "ride_on"]  # fmt: skip
METHODS = ["relation_words", "textual_inversion", "reversion"]
WORK = {  # what each command calls, the last of it after all parameters were read
    "fetch": ["stages.fetch.fetch_exemplars"],
    "validate": [
        "stages.validate.base_tokenizer",
        "stages.validate.validate_folder",
        "stages.validate.write_verdict",
    ],
    "invert": [
        "stages.invert.load_base",
        "relinv.learning.problem.read_exemplars",
        "relinv.learning.problem.require_valid",
        "stages.invert.invert_relation",
    ],
    "generate": [
        "stages.generate.find_result",
        "stages.generate.load_base",
        "stages.generate.load_concept",
        "stages.generate.generate_folder",
    ],
    "score": [
        "stages.score.find_result",
        "relinv.scoring.read_image_folder",
        "stages.score.load_judge",
        "relinv.scoring.score_images",
    ],
    "judge": [
        "stages.judge.read_exemplars",
        "stages.judge.load_judge",
        "stages.judge.ask_of_exemplars",
    ],
    "report": [
        *(
            f"relinv.report.collect.{name}"
            for name in (
                "read_arms",
                "read_judged",
                "read_exemplars",
                "read_verdict",
                "read_metadata",
                "judge_facts",
                "_require_scored_by",
            )
        ),
        "relinv.report.build.tell",
    ],
}

EACH = ["fetch@inside", "validate@inside", "invert@inside-reversion", "generate@inside-reversion",
        "score@inside-reversion", "judge@inside", "report"]  # fmt: skip
# Code that brings results about without deciding what they are.
PLUMBING = {
    f"relinv/{name}.py"
    for name in ("checking", "cli", "errors", "files", "fingerprint", "forking", "hub", "overrides", "params",
                 "pipeline/repository", "plugins", "results", "settings", "unchanged")
}  # fmt: skip
# What a package's own file holds is documentation; preflight refuses mistakes in what other stages read.
BESIDE = (Path("relinv/__init__.py"), Path("relinv/preflight.py"))


class Done(Exception):
    """Ends a command whose parameters have been read."""


@pytest.fixture(scope="module")
def params_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default's parameters, whichever relations and methods an experiment has left in params.yaml.

    With a preset of the base, so that the sections that only a preset needs are read too.
    """
    values = read_yaml(Path("params.yaml")) | {"base": "miniature", "relations": RELATIONS, "methods": METHODS}
    values["invert"]["preset"], values["bases"]["miniature"]["preset"] = None, "official"
    file = tmp_path_factory.mktemp("pipeline") / "params.yaml"
    file.write_text(as_yaml(values))
    shutil.copy("dvc.yaml", file.parent)
    return file


@pytest.fixture(scope="module")
def stages(params_file: Path) -> dict[str, Any]:
    """All stages of dvc.yaml as DVC itself expands them, by name."""
    from dvc.repo import Repo

    with Repo(str(params_file.parent), uninitialized=True) as repo:
        return {stage.name: stage for stage in repo.stage.load_all(str(params_file.with_name("dvc.yaml")))}


def test_stages_are_named_by_relation_and_method(stages: dict[str, Any]) -> None:
    fetched, valid, judged = ([f"{stage}@{each}" for each in RELATIONS] for stage in ("fetch", "validate", "judge"))
    runs = [f"{stage}@{relation}-{method}" for stage in ("invert", "generate", "score")
            for relation in RELATIONS for method in METHODS]  # fmt: skip
    assert list(stages) == [*fetched, *valid, *judged, *runs, "report"]


def test_the_readmes_graph_is_the_pipelines(stages: dict[str, Any]) -> None:
    drawn = Path("README.md").read_text().partition("flowchart LR")[2].partition("```")[0]
    arrows = re.findall(r"^ *(\w+) --> (.+)$", drawn, re.MULTILINE)
    made = [(name.partition("@")[0], out.def_path) for name, stage in stages.items() for out in stage.outs]
    read = [(name.partition("@")[0], dep.def_path) for name, stage in stages.items() for dep in stage.deps]
    edges = {(maker, name) for maker, out in made for name, dep in read if Path(out).is_relative_to(dep)}
    assert {(maker, name) for maker, names in arrows for name in names.split(" & ")} == edges


def test_every_stage_is_a_described_module_command(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        assert stage.cmd.startswith(f"python -m stages.{name.partition('@')[0]}")
        assert stage.desc
    assert stages["invert@on-reversion"].cmd == "python -m stages.invert on reversion"


def test_a_run_depends_on_its_own_method_alone(stages: dict[str, Any]) -> None:
    methods = [dep.def_path for dep in stages["invert@on-reversion"].deps if dep.def_path.startswith("relinv/methods/")]
    assert methods == ["relinv/methods/reversion.py"]


def test_a_run_depends_on_its_own_methods_presets_alone(stages: dict[str, Any]) -> None:
    presets = [name for name in tracked(stages["invert@on-reversion"]) if name.startswith("presets")]
    assert presets == ["presets.reversion"]
    assert load_params().presets.keys() == {*plugin_names("relinv.methods")}  # else DVC would miss a section


def test_what_a_person_places_lies_below_what_fetching_depends_on(stages: dict[str, Any]) -> None:
    read = {dep.def_path for dep in stages["fetch@inside"].deps}
    for folder in (OWN, PLACED):  # else DVC would give the old pictures back
        assert any(folder.is_relative_to(path) for path in read), folder


def test_code_dependencies_exist(stages: dict[str, Any]) -> None:
    code = {dep.def_path for stage in stages.values() for dep in stage.deps if dep.def_path.startswith("relinv/")}
    assert [path for path in sorted(code) if not Path(path).exists()] == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("invert@inside-reversion", (*inversion.CODE, "methods/reversion.py")),
        ("generate@inside-reversion", generation.CODE),
    ],
)
def test_an_unfinished_run_is_resumed_by_no_other_code_that_dvc_watches(
    name: str, code: tuple[str, ...], stages: dict[str, Any]
) -> None:
    watched = [Path(dep.def_path) for dep in stages[name].deps if dep.def_path.startswith("relinv/")]
    assert [path for path in watched if not any(path.is_relative_to(Path("relinv") / part) for part in code)] == []


@pytest.mark.parametrize("name", EACH)
def test_a_stage_depends_on_all_code_that_decides_its_results(name: str, stages: dict[str, Any]) -> None:
    stage, _, item = name.partition("@")
    named = {dep.def_path for dep in stages[name].deps if dep.def_path.startswith("relinv/")}
    used = imported(Path(f"stages/{stage}.py"))
    if stage == "invert":
        used |= imported(Path(f"relinv/methods/{item.split('-')[1]}.py"))
    uncovered = {
        path for path in used - PLUMBING if not any(path == dep or path.startswith(f"{dep}/") for dep in named)
    }
    assert uncovered == set()


@pytest.mark.parametrize("method", plugin_names("relinv.methods"))
def test_an_inversion_depends_on_all_code_of_its_method(method: str, stages: dict[str, Any]) -> None:
    named = {dep.def_path for dep in stages["invert@inside-reversion"].deps} | {f"relinv/methods/{method}.py"}
    others = {"relinv/exchange"} if method == "imported" else set()  # readers of files, whose hash is a parameter
    used = imported(Path(f"relinv/methods/{method}.py")) - PLUMBING
    assert [path for path in sorted(used) if not any(Path(path).is_relative_to(dep) for dep in named | others)] == []


def test_methods_need_no_git() -> None:
    methods = {method: imported(Path(f"relinv/methods/{method}.py")) for method in plugin_names("relinv.methods")}
    assert {method for method, used in methods.items() if "relinv/pipeline/repository.py" in used} == set()


def test_the_pipeline_needs_no_command_line() -> None:
    assert "relinv/cli.py" not in imported(Path("relinv/pipeline/reproducing.py"))


@pytest.mark.parametrize("name", EACH)
def test_a_stage_depends_on_the_plugins_that_it_finds_by_name(name: str, stages: dict[str, Any]) -> None:
    texts = [Path(path).read_text() for path in imported(Path(f"stages/{name.partition('@')[0]}.py")) - PLUMBING]
    found = {package for text in texts for package in re.findall(r'"relinv\.(\w+)"', text)}
    found -= {"methods"}  # of which a run needs one alone
    assert bool(found) == (name not in ("validate@inside", "judge@inside"))
    assert {f"relinv/{package}" for package in found} <= {dep.def_path for dep in stages[name].deps}


def test_stages_depend_on_the_data_that_their_parameters_name(stages: dict[str, Any]) -> None:
    data = {"benchmark": "data/benchmark", "model": "data/miniature/base", "judge": "data/miniature/judge"}
    for name, stage in stages.items():
        sections = {section.rpartition(".")[2] for section in tracked(stage) if section.startswith("bases.miniature.")}
        files = [dep.def_path for dep in stage.deps]
        for section in sections & set(data):
            assert any(file.startswith(data[section]) for file in files), (name, section)


def imported(file: Path, found: set[str] | None = None) -> set[str]:
    """Return the modules of relinv that a file runs, itself and what it imports at any depth among them."""
    found = set() if found is None else found
    if file.as_posix() in found:
        return found
    if file.parts[0] == "relinv":
        found.add(file.as_posix())
    for module in imports(ast.parse(file.read_text())):
        path = Path(*module.split("."))
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file() and candidate not in BESIDE:
                imported(candidate, found)
    return found


def imports(node: ast.AST) -> Iterator[str]:
    """Yield the names that code imports as it runs: what stands under TYPE_CHECKING does not count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        else:
            yield from imports(child)


def test_no_packages_import_each_other_in_a_circle() -> None:
    """Data flows one way, so imports do: those within functions count, and those for annotations alone."""
    graph: dict[str, set[str]] = {}  # a module directly below relinv is a package of its own
    for file in Path("relinv").rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        names = [f"{node.module}.{alias.name}".split(".") for node in nodes for alias in node.names]
        package = file.with_suffix("").parts[1]
        used = {part for top, part, *_ in names if top == "relinv"} - {package}
        graph[package] = graph.get(package, set()) | used
    TopologicalSorter(graph).prepare()  # a CycleError names those of a circle


def test_only_the_report_keeps_its_outputs_out_of_the_cache(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        assert {out.use_cache for out in stage.outs} == {name != "report"}, name


@pytest.mark.parametrize("name", EACH)
def test_stage_tracks_exactly_the_sections_its_command_reads(
    name: str, stages: dict[str, Any], params_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, _, item = name.partition("@")
    loaded: list[Any] = []  # the last decide the results; some stages check others first
    monkeypatch.setattr(f"stages.{stage}.load_params", lambda: loaded.append(load_params(params_file)) or loaded[-1])
    *work, last = WORK[stage]
    for name_of_work in work:
        monkeypatch.setattr(name_of_work, MagicMock())
    monkeypatch.setattr(last, MagicMock(side_effect=Done))
    command = importlib.import_module(f"stages.{stage}").app.registered_commands[0]
    with pytest.raises(Done):
        command.callback(*filter(None, item.split("-")))
    assert sorted(loaded[-1].sections_read) == tracked(stages[name])


def tracked(stage: Any) -> list[str]:
    """Return the sections of params.yaml that a stage of DVC names."""
    from dvc.dependency import ParamsDependency

    files = [dep for dep in stage.deps if isinstance(dep, ParamsDependency) and dep.def_path == "params.yaml"]
    return sorted(name for dep in files for name in dep.params)


def test_schedulers_offered_are_those_there_are() -> None:
    assert set(get_args(Scheduler)) == set(SCHEDULERS) == set(SAMPLERS)  # each has a name in the web UIs


@pytest.mark.parametrize(
    "name", [".DS_Store", "._cat.png", "Thumbs.db", "desktop.ini", ".#on.yaml", ".on.yaml.swp", "#on.yaml#", "on.yaml~"]
)
def test_a_folder_looked_at_in_a_file_manager_or_an_editor_is_not_changed(name: str) -> None:
    from dvc.repo import Repo

    folder = Path("data/benchmark").resolve()  # a dependency of every stage
    with Repo() as repo:
        assert repo.dvcignore.is_ignored_file(str(folder / name))
        assert not repo.dvcignore.is_ignored_file(str(folder / "miniature.yaml"))
