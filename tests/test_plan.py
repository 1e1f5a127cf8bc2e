"""A study's plan: what it may change, and under which names its trials run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from relinv.errors import UserError
from relinv.params import load_params
from relinv.study.plan import Contrast, Trial, check_trials, load_plan, overridden, trials
from stages.study import study as study_command
from tests.studying import ENVIRONMENT, HERE, PARAMS, PIPELINE, PLAN


def test_plans_of_one_name_are_refused_before_any_runs() -> None:
    with pytest.raises(UserError, match="Two of the plans have one name"):
        study_command(plans=[Path("plans/study.yaml"), Path("mine/study.yaml")], slots=2)


def test_an_arm_may_change_what_all_have_in_common(repository: Path) -> None:
    plan = load_plan(repository / "study.yaml").model_copy(update={"common": {"score.skill": 0.1}})
    skills = {trial.arm: trial.overrides["score.skill"] for trial in trials(repository, plan)}
    assert skills == {"plain": 0.1, "better": 0.9}


def of_sd15(changes: dict[str, Any]) -> list[Trial]:
    """Return the trials of a plan on a base with a preset: as it is, and with changes."""
    changed = {"common": {"base": "sd15"}, "arms": {"default": {}, "changed": changes}, "contrasts": [], "seeds": [0]}
    return trials(HERE, load_plan(HERE / "plans/study_parts.yaml").model_copy(update=changed))


WEIGHT, OFFICIAL = "reversion.steer_weight", "presets.reversion.official.steer_weight"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {f"invert.{WEIGHT}": 0.0},
            f"'invert.{WEIGHT}' would change nothing: the preset 'official' sets it; write {OFFICIAL}.",
        ),
        (
            {"invert.reversion": {"steer_weight": 0.0}},
            f"'invert.{WEIGHT}' would change nothing: the preset 'official' sets it; write {OFFICIAL}.",
        ),
        (
            {"invert.compositional.layout.scale": 1.0},
            "'invert.compositional.layout.scale' would change nothing: the preset 'official' sets it; write "
            "presets.compositional.official.layout.scale.",
        ),
        (
            {"invert.preset": "short", OFFICIAL: 0.0},
            f"'{OFFICIAL}' would change nothing: the preset in use is 'short'; set invert.preset to 'official'.",
        ),
        (
            {f"{OFFICIAL}s": 0.0},
            f"The study overrides '{OFFICIAL}s', which params.yaml does not have: correct its name.",
        ),
    ],
)
def test_an_arm_that_a_preset_makes_the_same_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        of_sd15(changes)
    assert str(caught.value) == f"Arm 'changed' of the study: {told}"


def test_an_arm_may_change_a_preset_and_what_it_leaves_alone() -> None:
    (same, other), (_, as_published) = of_sd15({OFFICIAL: 0.0}), of_sd15({OFFICIAL: 0.01})
    assert other.name[-8:] != same.name[-8:] == as_published.name[-8:]  # the part that says what is trained
    for changes in (
        {"invert.reversion.stop_threshold": 0.2},
        {"bases.sd15.preset": None, f"invert.{WEIGHT}": 0.0},
    ):
        assert len(of_sd15(changes)) == 2


def test_every_parameter_that_is_seeded_gets_the_seed(repository: Path) -> None:
    plan = load_plan(repository / "study.yaml").model_copy(update={"seeded": ["invert.seed", "score.skill"]})
    trial = trials(repository, plan.model_copy(update={"seeds": [7]}))[1]
    assert (trial.overrides["invert.seed"], trial.overrides["score.skill"]) == (7, 7)


def test_names_change_with_what_decides_scores_and_with_nothing_else(repository: Path) -> None:
    plan = load_plan(repository / "study.yaml")

    def name() -> str:
        return trials(repository, plan)[0].name

    before = name()
    (repository / "relinv/metrics/__pycache__").mkdir()
    (repository / "relinv/metrics/.ipynb_checkpoints").mkdir()
    hidden = "relinv/metrics/.ipynb_checkpoints/skill.py"
    for unseen in ("relinv/metrics/__pycache__/skill.pyc", "data/exemplars/.DS_Store", hidden):
        (repository / unseen).touch()
    for path, text, changes in (
        ("relinv/metrics/skill.py", "x = 1\n", True),
        ("relinv/methods/reversion.py", "x = 1\n", True),
        ("relinv/methods/dreambooth.py", "x = 1\n", False),
        ("relinv/commands/tokens.py", "x = 1\n", False),
        ("relinv/report/rows.py", "x = 1\n", False),
        ("relinv/metrics/__pycache__/skill.pyc", "x\n", False),
        ("reports/scores.csv", "x\n", False),
        ("data/exemplars/README.md", "x\n", True),
        ("data/exemplars/.DS_Store", "x\n", False),
        (hidden, "x = 1\n", False),
        ("params.yaml", PARAMS + "# of no method\n", False),
        ("params.yaml", PARAMS + "  dreambooth: {long: {steps: 9}}\n", False),
        ("params.yaml", PARAMS.replace("reversion: {}", "reversion: {long: {steps: 9}}"), True),
        ("dvc.yaml", "# a comment\n" + PIPELINE, False),
        ("dvc.yaml", PIPELINE.replace("python make.py", "python -u make.py"), True),
        ("dvc.yaml", PIPELINE.replace("python tell.py", "python -u tell.py"), False),
        ("params.yaml", PARAMS.replace("  seed: 0\nreport", "  seed: 0\n  dreambooth: {steps: 9}\nreport"), False),
        ("params.yaml", PARAMS.replace("relations:", "  another: {preset: }\nrelations:"), False),
        ("params.yaml", PARAMS.replace("resamples: 100", "resamples: 200"), False),
        ("relinv/judging.py", "# decides no scores\n", False),
        ("params.yaml", PARAMS.replace("skill: 0.6", "skill: 0.7"), True),
    ):
        old = (repository / path).read_text()
        (repository / path).write_text(text)
        assert (name() != before) == changes, (path, text)
        (repository / path).write_text(old)


def test_an_arm_has_one_name_whatever_arms_are_before_it(repository: Path) -> None:
    plan = load_plan(repository / "study.yaml").model_copy(update={"contrasts": []})
    words: dict[str, Any] = {"methods": ["relation_words"]}
    names = {
        order: {trial.arm: trial.name for trial in trials(repository, plan.model_copy(update={"arms": arms}))}
        for order, arms in enumerate(({"both": {}, "words": words}, {"words": words, "both": {}}))
    }
    assert names[0] == names[1]


def test_what_an_arm_changes_within_a_common_section_is_not_changed_for_others() -> None:
    common = {"presets.reversion": {"mine": {"steps": 9}}}
    values: dict[str, Any] = {"presets": {"reversion": {}}}
    changed = overridden(values, common | {"presets.reversion.mine.steps": 3})
    assert changed == {"presets": {"reversion": {"mine": {"steps": 3}}}}
    assert overridden(values, common) == {"presets": {"reversion": {"mine": {"steps": 9}}}}


def test_names_are_the_same_in_every_process_and_once_the_pipeline_has_run(tmp_path: Path) -> None:
    """Else a study would run what it has finished once more."""
    given = PIPELINE.replace("deps: [make.py,", 'deps: [make.py, "data/${item.method}",')
    files = {"params.yaml": PARAMS, "dvc.yaml": given, "study.yaml": PLAN, "make.py": ""}
    for name in ("methods/relation_words", "methods/reversion", "metrics/skill"):
        files[f"relinv/{name}.py"] = ""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    code = (
        "from tests.studying import *; print(*(trial.name for trial in trials(Path(), load_plan(Path('study.yaml')))))"
    )
    names = set()
    for seed in ("1", "2", "3"):  # of Python's hashes, and so of the order of its sets
        command, environment = [sys.executable, "-c", code], os.environ | ENVIRONMENT | {"PYTHONHASHSEED": seed}
        names.add(subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True).stdout)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data/reversion").write_text(seed)  # what a stage makes
    assert len(names) == 1


def test_plans_are_checked(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(PLAN.replace("left: better/", "left: bettr/"))
    with pytest.raises(UserError, match=r"bettr.*Did you mean 'better'"):
        load_plan(tmp_path / "study.yaml")
    (tmp_path / "study.yaml").write_text(PLAN + "reports: {btter: []}\n")
    with pytest.raises(UserError, match=r"arm 'btter' in reports of .*Did you mean 'better'"):
        load_plan(tmp_path / "study.yaml")
    plan = load_plan(repository / "study.yaml")
    misspelt = Contrast(title="one", left="better/reversoin", right="plain/reversion")
    with pytest.raises(
        UserError, match=r"method 'reversoin' in arm 'better', which contrast 'one' names\..*Did you mean 'reversion'"
    ):
        trials(repository, plan.model_copy(update={"contrasts": [misspelt]}))
    (tmp_path / "study.yaml").write_text(PLAN.replace("right: plain/reversion", "right: plan/reversion"))
    with pytest.raises(UserError, match=r"plan'.*Did you mean 'plain'"):
        load_plan(tmp_path / "study.yaml")
    misspelt = Contrast(title="one", left="plain/reversion", right="better/reversoin")
    with pytest.raises(UserError, match=r"method 'reversoin' in arm 'better'"):
        trials(repository, plan.model_copy(update={"contrasts": [misspelt]}))
    with pytest.raises(UserError, match=r"^Arm 'better' of the study: Unknown method 'multirez'\. Did you"):
        trials(repository, plan.model_copy(update={"common": {"methods": ["multirez"]}}))
    common = {"methods": ["multires"], "relations": ["kissing"]}  # of every arm
    other = Contrast(title="one", left="plain/multires", right="better/multires")
    fitting = {"common": common, "contrasts": [other], "reports": {"plain": ["kissing"]}}
    assert len(trials(repository, plan.model_copy(update=fitting))) == 2
    with pytest.raises(UserError, match=r"Unknown relation 'hugging' in reports of arm 'plain'"):
        trials(repository, plan.model_copy(update={"reports": {"plain": ["hugging"]}}))
    with pytest.raises(UserError, match=r"overrides 'invert\.sed'"):
        overridden({"invert": {"seed": 0}}, {"invert.sed": 1})


@pytest.mark.parametrize(
    ("was", "wrong", "told"),
    [
        ("seeds: [0]", "seeds: [0, 0]", r"'seeds' is \[0, 0\] in .*study\.yaml: each item may appear only once"),
        (
            "seeds:",
            "metrics: [entity, entity]\nseeds:",
            r"'metrics' is \['entity', 'entity'\] in .*each item may appear only once",
        ),
        ("Over plain words", "What skill adds", r"Two contrasts of .*study\.yaml are titled 'What skill adds': rename"),
        (
            "{score.skill: 0.9}",
            "{score.skill: 0.9, invert.seed: 7}",
            r"'invert\.seed' in 'arms\.better' of .*study\.yaml would be overwritten by each seed: take it out there",
        ),
        ("{report.seed: 0}", "{invert: {seed: 0}}", r"'invert\.seed' in 'common' of .* would be overwritten"),
    ],
)
def test_what_a_plan_says_twice_is_refused(was: str, wrong: str, told: str, tmp_path: Path) -> None:
    assert PLAN.count(was) == 1
    (tmp_path / "study.yaml").write_text(PLAN.replace(was, wrong))
    with pytest.raises(UserError, match=told):
        load_plan(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("methods:", "'methods' is null in params.yaml: it must be a valid list"),
        ("methods: 3", "'methods' is 3 in params.yaml: it must be a valid list"),
        ("methods: [reversion, 3]", r"'methods\.1' is 3 in params.yaml: it must be a valid string"),
        ("relations:", "'relations' is null in params.yaml: it must be a valid list"),
        ("base: [miniature]", r"'base' is \['miniature'\] in params.yaml: it must be a valid string"),
        (
            "invert.preset: [official]",
            r"'invert\.preset' is \['official'\] in .*params.yaml: it must be a valid string",
        ),
        ("invert.reversion.steps: 2026-01-31", r"'invert\.reversion\.steps' is 2026-01-31 .* a valid integer"),
    ],
)
def test_a_value_of_another_kind_is_told_in_a_sentence(text: str, told: str, tmp_path: Path) -> None:
    plan = PLAN.replace("{score.skill: 0.9}", f"\n    {text}\nreports:\n  better: [hug]")
    (tmp_path / "study.yaml").write_text(plan)
    with pytest.raises(UserError, match=f"^Arm 'better' of the study: Parameter {told}"):
        check_trials(HERE, trials(HERE, load_plan(tmp_path / "study.yaml")))


@pytest.mark.parametrize("file", sorted((HERE / "plans").iterdir()), ids=lambda path: path.stem)
def test_the_plans_of_this_repository_fit_its_parameters(file: Path) -> None:
    plan = load_plan(file)
    planned = trials(HERE, plan)
    assert len({trial.name for trial in planned}) == len(plan.arms) * len(plan.seeds)
    check_trials(HERE, planned)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"methods": ["relation_words", "revrsion"]}, "Unknown method 'revrsion'"),
        ({"relations": ["insid"]}, "Unknown relation 'insid'"),
        ({"invert.reversion.steps": "many"}, r"invert\.reversion\.steps"),
        ({"bases.miniature.model.precision": "fp8"}, r"bases\.miniature\.model\.precision"),
        (
            {"invert.preset": "official", "presets.reversion.official.steps": "many"},
            r"'presets\.reversion\.official\.steps' is 'many' in params\.yaml",
        ),
    ],
)
def test_a_mistake_in_a_later_arm_is_told_before_any_runs(
    wrong: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load_plan(HERE / "plans/study.yaml")
    arms = {"right": {}, "wrong": wrong}
    wrong_plan = plan.model_copy(update={"arms": arms, "contrasts": [], "reports": {}})
    monkeypatch.setattr("relinv.study.plan.load_plan", lambda path: wrong_plan)
    monkeypatch.setattr("relinv.study.running.run_pending", MagicMock(side_effect=AssertionError("one was run")))
    with pytest.raises(UserError, match=rf"Arm 'wrong' of the study: .*{told}"):
        study_command(plans=[Path("plans/study.yaml")], slots=2)
    planned = {trial.name: "its commit" for trial in trials(HERE, wrong_plan)}
    monkeypatch.setattr("relinv.study.running.finished", lambda root, trials: planned)
    with pytest.raises(AssertionError, match="one was run"):  # what is finished is tabulated, whatever is here now
        study_command(plans=[Path("plans/study.yaml")], slots=2)


def test_a_plan_whose_results_a_report_would_replace_is_told(tmp_path: Path) -> None:
    shutil.copyfile(HERE / "plans/study.yaml", tmp_path / "grids.yaml")
    with pytest.raises(UserError, match="would be written into reports/grids, which every report replaces: rename"):
        study_command(plans=[tmp_path / "grids.yaml"], slots=2)


def test_an_edit_that_a_plans_preset_undoes_is_told_before_any_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = Path("params.yaml").read_text().replace("learning_rate: 0.00006", "learning_rate: 0.00007")
    monkeypatch.setattr("relinv.overrides.git", lambda *words: committed)
    check_trials(HERE, trials(HERE, load_plan(HERE / "plans/methods.yaml")))
    planned = trials(HERE, load_plan(HERE / "plans/objects.yaml"))
    with pytest.raises(
        UserError, match=r"^Arm 'objects' .* 'invert\.dreambooth\.learning_rate' would change nothing: the"
    ):
        check_trials(HERE, planned)


def test_a_plan_of_an_unknown_base_is_told(repository: Path) -> None:
    plan = load_plan(repository / "study.yaml").model_copy(update={"common": {"base": "bb"}, "contrasts": []})
    with pytest.raises(UserError, match=r"Unknown base 'bb'. Did you mean 'b'"):
        trials(repository, plan)


def test_a_study_names_the_judge_of_its_arms_base() -> None:
    changes = {"common": {"base": "sd15"}, "arms": {"one": {}}, "contrasts": [], "reports": {}, "seeds": [0]}
    (trial,) = trials(HERE, load_plan(HERE / "plans/study_parts.yaml").model_copy(update=changes))
    values = load_params().section("bases.sd15.judge", dict[str, Any])
    assert values["pretrained"] and trial.judge == f"{values['model']}/{values['pretrained']}"


def test_a_metric_that_there_is_not_is_told_before_a_study_runs(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(PLAN + "metrics: [scene_accuracy, relation_acuracy]\n")
    told = r"Unknown metric 'relation_acuracy' in .*study\.yaml\. Did you mean 'relation_accuracy'"
    with pytest.raises(UserError, match=told):
        load_plan(tmp_path / "study.yaml")
