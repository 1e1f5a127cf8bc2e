"""Comparing revisions and running studies, in a small repository whose one stage writes made-up scores."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest

from relinv.errors import UserError
from relinv.fetching.downloads import cache_folder
from relinv.fetching.fetch import fetch_exemplars
from relinv.files import read_yaml
from relinv.overrides import as_override, changed_params
from relinv.params import flatten
from relinv.report.compare import as_html, as_lines, compare, require_html
from relinv.report.pages import INTERVALS
from relinv.report.revisions import params_at, scores_at
from relinv.report.rows import READINGS, Reading, format_rows, parse_rows, with_leakage
from relinv.report.tables import DIFFERENCES
from relinv.settings import ExemplarSettings, ExemplarSource
from relinv.statistics import Bootstrap
from relinv.study.checkout import experiments, open_checkout
from relinv.study.plan import Contrast, Trial, check_trials, load_plan, overridden, trials
from relinv.study.running import LOGS, finished
from relinv.study.summary import gather, keep_reports, write_study
from stages.compare import compare as compare_command
from stages.study import study as study_command
from tests.reporting import pretended, score_table
from tests.studying import HERE, PARAMS, PIPELINE, PLAN, run_all, runner, two_arms, write_repository
from tests.waiting import wait_until

FEW = Bootstrap(resamples=100)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC repository with one committed run; experiments are run with this Python."""
    root = tmp_path_factory.mktemp("repository")
    write_repository(root)
    return root


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Git's author, this Python as `python`, and this checkout's tests for stages in temporary checkouts."""
    patch = pytest.MonkeyPatch()
    for name in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{name}_NAME", "test")
        patch.setenv(f"GIT_{name}_EMAIL", "test@example.org")
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("PYTHONPATH", str(HERE))
    patch.setenv("DVC_NO_ANALYTICS", "1")
    yield
    patch.undo()


def test_a_study_runs_each_trial_once_and_reads_it_back(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = load_plan(repository / "study.yaml")
    planned = trials(repository, plan)
    assert [(trial.arm, trial.seed, trial.work) for trial in planned] == [("plain", 0, 4), ("better", 0, 4)]
    first = run_all(repository, planned[:1])
    commits = run_all(repository, planned)
    assert commits[planned[0].name] == first[planned[0].name]  # not run again
    assert finished(repository, planned) == commits
    rows = gather(repository, load_plan(repository / "study.yaml"), planned, commits)
    assert set(zip(rows["arm"], rows["trial"], strict=True)) == {(t.arm, t.seed) for t in planned}

    keep_reports(repository, tmp_path, plan.model_copy(update={"reports": {"better": ["hug"]}}), planned, commits)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert kept == {"better.html": "<p>skill 0.9</p>", "better-hug.png": "a grid of 0.9"}

    gain = (11 - 8) / 12  # of scenarios, by construction
    name = planned[1].name  # an experiment is compared by its name
    comparison = compare(repository, ["main", name, "workspace"], FEW)
    assert comparison.parameters == {"score.skill": [0.6, 0.9, 0.6]}
    means, differences, alone = comparison.methods["reversion"]
    assert [line.name for line in means.lines] == ["main", name, "workspace"]
    assert differences.lines[0].cells[0].mean == pytest.approx(gain)
    assert differences.lines[1].cells[0] == (0, 0, 0)
    assert alone.lines[0].bold[0] and not differences.lines[0].bold[0]  # sure for these two relations, not in general

    monkeypatch.chdir(repository)
    monkeypatch.setattr("relinv.study.plan.check_params", lambda params: None)  # of parameters cut down for this
    study_command(plans=[Path("study.yaml")], slots=2)  # all is finished: it writes the tables
    assert "What skill adds" in (repository / "reports" / "study" / "study.md").read_text(encoding="utf-8")
    compare_command(["main", name, "workspace"], html=tmp_path / "compared.html")
    told = capsys.readouterr().out
    assert "score.skill: 0.6 | 0.9 | 0.6" in told and told.count(f"{name} − main") == 2  # in general, and of these
    assert f"<h1>main, {name}, workspace</h1>" in (tmp_path / "compared.html").read_text(encoding="utf-8")


def test_tables_replace_nothing_that_a_comparison_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "reports/scores.csv"):
        with pytest.raises(UserError, match=rf"^The tables in '{name}' would be HTML by another name: let"):
            compare_command(["main", "workspace"], html=Path(name))
    require_html(Path("COMPARED.HTML"))


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


def test_a_preset_that_an_arm_changes_is_changed_for_that_arm_alone(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    write_repository(repository)
    params = PARAMS.replace("invert:\n", "invert:\n  preset: long\n").replace("{}", "{long: {steps: 9}}")
    (repository / "params.yaml").write_text(params)
    arms = {"shorter": {"presets.reversion.long.steps": 3}, "long": {}}
    plan = load_plan(repository / "study.yaml").model_copy(update={"arms": arms, "contrasts": []})
    commits = run_all(repository, planned := trials(repository, plan))
    found = [params_at(repository, commits[trial.name])["presets.reversion.long.steps"] for trial in planned]
    assert found == [3, 9]


def test_every_parameter_that_is_seeded_gets_the_seed(repository: Path) -> None:
    plan = load_plan(repository / "study.yaml").model_copy(update={"seeded": ["invert.seed", "score.skill"]})
    trial = trials(repository, plan.model_copy(update={"seeds": [7]}))[1]
    assert (trial.overrides["invert.seed"], trial.overrides["score.skill"]) == (7, 7)


def test_a_study_runs_with_what_is_not_committed_and_leaves_the_users_files_alone(repository: Path) -> None:
    (repository / "params.yaml").write_text(changed := "# mine\n" + PARAMS.replace("- hug\n", ""))
    planned = two_arms(repository)
    commits = run_all(repository, planned)
    rows = gather(repository, load_plan(repository / "study.yaml"), planned, commits)
    assert (repository / "params.yaml").read_text() == changed
    (repository / "params.yaml").write_text(PARAMS)
    assert set(rows["relation"]) == {"inside"}
    for trial in planned:  # a parameter file that a person can go on with
        params = runner(repository)("git", "show", f"{commits[trial.name]}:params.yaml")
        skill, seed = trial.overrides.get("score.skill", 0.6), trial.overrides["invert.seed"]
        assert params == changed.replace("skill: 0.6", f"skill: {skill}").replace("  seed: 0", f"  seed: {seed}", 1)
    checkout = repository / LOGS / "checkout"
    assert runner(checkout)(sys.executable, "-m", "dvc", "cache", "dir").strip() == str(repository / ".dvc/cache")
    assert not (repository / ".dvc/config.local").exists()
    assert finished(repository, two_arms(repository)) == {}  # other parameters, other experiments


def test_a_new_file_is_in_a_study_as_long_as_it_is_there(repository: Path) -> None:
    def files(*skills: float) -> list[set[str]]:
        """Return the files in the experiments of a plan whose arms differ in their skill."""
        arms = {f"new{skill}": {"score.skill": skill} for skill in skills}
        plan = load_plan(repository / "study.yaml").model_copy(update={"arms": arms, "contrasts": []})
        planned = trials(repository, plan)
        commits = run_all(repository, planned)
        listed = [runner(repository)("git", "ls-tree", "-r", "--name-only", commits[trial.name]) for trial in planned]
        return [set(names.splitlines()) for names in listed]

    new, added = "relinv/metrics/new.py", "relinv/metrics/added.py"
    for name in (new, added):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).touch()
    runner(repository)("git", "add", added)
    (repository / "relinv/metrics/.#new.py").symlink_to("an editor's lock")
    (repository / "relinv/metrics/.new.py.swp").touch()
    made = files(0.11, 0.12)  # the second after git has let go of what was added for the first
    assert [{new, added} & names for names in made] == [{new, added}] * 2
    assert not any(".new.py.swp" in name for names in made for name in names)
    (repository / new).unlink()
    runner(repository)("git", "rm", "--quiet", "--force", added)
    checksums = repository / LOGS / "checkout/data/manifests/hug.json"  # of what a study fetched
    checksums.parent.mkdir(parents=True)
    checksums.touch()
    (own := repository / "data/manifests/inside.json").parent.mkdir(parents=True)
    own.touch()
    assert [{new, added} & names for names in files(0.13)] == [set()]
    assert not (repository / LOGS / "checkout" / new).exists() and checksums.exists()
    assert (repository / LOGS / "checkout" / own.relative_to(repository)).exists()


def test_a_study_runs_after_an_experiment_without_the_committed_pictures(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    write_repository(repository)
    (repository / "reports/grids/hug.png").unlink()  # as one of other relations does
    planned = two_arms(repository)[:1]
    assert set(run_all(repository, planned)) == {trial.name for trial in planned}


def test_a_studys_files_are_the_users_to_the_byte(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    write_repository(repository)
    for content in (b"changed = 1\r\n", b"#\r\nchanged = 'M\xfcller'\r\n", "# −\n".encode(), b"\0\1"):
        for attempt in (content, content + content):  # from another program's line ends, and within them
            (repository / "make.py").write_bytes(attempt)
            runner(repository)("git", "config", "user.name", "Me")  # of this checkout alone
            assert (open_checkout(repository, tmp_path / "checkout") / "make.py").read_bytes() == attempt
            runner(repository)("git", "commit", "--quiet", "-a", "-m", "changed")
    assert runner(tmp_path / "checkout")("git", "config", "--local", "user.name") == "Me\n"


def test_a_study_has_a_persons_own_exemplars(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    write_repository(repository)
    own = repository / "data/exemplars/own/kissing"
    own.mkdir(parents=True)
    names = {two_arms(repository)[0].name}
    for content in ("first", "second"):
        (own / "text.json").write_text(content)
        (own / ".0.png.tmp").symlink_to("nowhere")
        (own / ".1.png.tmp").touch()  # still being written
        names.add(two_arms(repository)[0].name)
        checkout = open_checkout(repository, tmp_path / "checkout")
        assert (checkout / "data/exemplars/own/kissing/text.json").read_text() == content
        assert [path.name for path in (checkout / "data/exemplars/own/kissing").iterdir()] == ["text.json"]
        (own / ".0.png.tmp").unlink()
    assert len(names) == 3  # other exemplars, other experiments
    shutil.rmtree(own)
    (tmp_path / "attributes").write_text("*.py diff=size\n")
    for setting in (  # as a person's git may be set
        "diff.noprefix=true",
        "color.ui=always",
        "diff.external=true",
        "diff.context=0",
        "diff.size.textconv=wc -c",
        f"core.attributesFile={tmp_path / 'attributes'}",
    ):
        runner(repository)("git", "config", *setting.split("="))
    (repository / "make.py").write_text("changed = True\n")
    (repository / "params.yaml").write_text(changed := PARAMS.replace("skill: 0.6", "skill: 0.5"))
    assert (open_checkout(repository, tmp_path / "checkout") / "params.yaml").read_text() == changed
    assert (open_checkout(repository, tmp_path / "checkout") / "make.py").read_text() == "changed = True\n"
    assert not (open_checkout(repository, tmp_path / "checkout") / "data/exemplars/own/kissing").exists()


def test_a_study_has_what_was_downloaded_before_it(
    exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    write_repository(repository)
    source = ExemplarSource(source="folder", path="not here", manifest=None)
    shutil.copytree(exemplar_folder, kept := cache_folder(repository / ".scratch", source) / "inside")
    checkout = open_checkout(repository, tmp_path / "checkout")
    (checkout / ".scratch/downloads").unlink()
    (checkout / ".scratch/downloads/old").mkdir(parents=True)  # as studies once had it
    for attempt in ("first", "second"):
        monkeypatch.chdir(open_checkout(repository, checkout))
        settings = ExemplarSettings(set="shared", seed=0, count=None)
        fetch_exemplars("inside", Path("data/relations") / attempt, source, settings, Path(".scratch"))
        assert cache_folder(Path(".scratch"), source).samefile(kept.parent)  # so both use one lock
    runner(checkout)("git", "clean", "-ffdx")
    assert not (checkout / ".scratch").exists() and (kept / "text.json").exists()


def await_end_of_group(group: int, seconds: float = 30.0) -> None:
    """Wait until a killed group is gone: DVC takes a process that init has not reaped yet for a living one."""
    deadline = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        pytest.fail(f"Processes of the group {group} outlive SIGKILL.")


def test_a_killed_study_goes_on(repository: Path, tmp_path: Path) -> None:
    """SIGKILL ends it, and then all it started, while a stage runs."""
    begun = tmp_path / "begun"
    command = [sys.executable, "-m", "tests.studying", str(repository)]
    environment = os.environ | {"BEGUN": str(begun)}
    study = subprocess.Popen(command, cwd=HERE, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_until(lambda: begun.exists() or study.poll() is not None)
    assert study.poll() is None
    study.kill()
    study.wait(timeout=120)
    with (repository / LOGS / "lock").open() as lock, pytest.raises(BlockingIOError):  # its experiment goes on
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.killpg(study.pid, signal.SIGKILL)
    await_end_of_group(study.pid)
    planned = two_arms(repository)
    assert finished(repository, planned) == {}
    assert set(run_all(repository, planned)) == {trial.name for trial in planned}


def test_a_study_waits_for_another(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / LOGS).mkdir(parents=True, exist_ok=True)
    waiting = threading.Thread(target=run_all, args=(repository, []), daemon=True)
    with (repository / LOGS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting.start()
        waiting.join(timeout=1)
        assert waiting.is_alive() and "Waiting for the experiments" in capsys.readouterr().err
    waiting.join(timeout=60)
    assert not waiting.is_alive()


def test_a_study_that_waited_names_its_trials_after_the_files_it_runs(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    plan, params = load_plan(Path("study.yaml")), Path("params.yaml")
    before, text = trials(Path(), plan), params.read_text()
    monkeypatch.setattr("relinv.study.plan.check_trials", lambda root, trials: None)  # of parameters cut down for this

    @contextmanager
    def edited_meanwhile(root: Path) -> Iterator[int]:
        params.write_text(text.replace("skill: 0.6", "skill: 0.7"))
        yield 0

    run = MagicMock(side_effect=UserError("to here"))
    monkeypatch.setattr("relinv.study.running.alone", edited_meanwhile)
    monkeypatch.setattr("relinv.study.running.run_pending", run)
    try:
        with pytest.raises(UserError, match="to here"):
            study_command(plans=[Path("study.yaml")], slots=2)
        named = [trial.name for trial in run.call_args.args[1]]
        assert named == [trial.name for trial in trials(Path(), plan)] != [trial.name for trial in before]
    finally:
        params.write_text(text)


def test_a_study_runs_in_a_folder_of_any_name(tmp_path: Path) -> None:
    repository = tmp_path / "josé's own"
    repository.mkdir()
    write_repository(repository)
    planned = two_arms(repository)[:1]
    assert set(run_all(repository, planned)) == {trial.name for trial in planned}
    cache = runner(repository / LOGS / "checkout")("dvc", "cache", "dir").strip()
    assert Path(cache).samefile(repository / ".dvc/cache")


def test_an_experiment_that_was_kept_but_not_handed_over_is_run_again(repository: Path) -> None:
    (trial, _) = two_arms(repository)
    run_all(repository, [trial])
    (ref,) = (ref for ref in experiments(repository) if ref.endswith(f"/{trial.name}"))
    runner(repository)("git", "update-ref", "-d", ref)  # as when the study is killed just before
    assert set(run_all(repository, [trial])) == {trial.name}


def test_the_report_that_is_kept_is_of_the_first_seed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load_plan(repository / "study.yaml").model_copy(update={"seeds": [3, 1], "reports": {"plain": []}})
    planned = trials(repository, plan)
    assert [(trial.arm, trial.seed) for trial in planned] == list(product(("plain", "better"), (3, 1)))
    monkeypatch.setattr("relinv.study.summary.read_at", lambda root, commit, path: commit.encode())
    keep_reports(repository, tmp_path, plan, planned, {trial.name: f"{trial.arm} {trial.seed}" for trial in planned})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"plain.html": "plain 3"}


def test_seeds_are_pooled_and_the_page_says_what_each_arm_adds(repository: Path, tmp_path: Path) -> None:
    plan = load_plan(repository / "study.yaml")
    parts = []
    for arm, skill, seed in (("plain", 0.6, 0), ("plain", 0.6, 1), ("better", 0.9, 0), ("better", 0.9, 1)):
        params = {"relations": ["inside", "hug"], "methods": ["relation_words", "reversion"], "score": {"skill": skill}}
        scores = parse_rows(pretended(params | {"invert": {"seed": seed}}).encode(), "made up")
        parts.append(scores.assign(arm=arm, trial=seed))
    rows = pd.concat(parts, ignore_index=True)
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], rows, FEW)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "What skill adds" in page and "score.skill = 0.9" in page and "`study.yaml`" in page
    assert "Scored by `ViT-B-32/openai`." in page
    assert "+0.250" in page  # (11 − 8) / 12 of the scenarios
    assert "better/reversion differs from that of plain/reversion by +0.250 (" in page  # of two relations in general
    assert (tmp_path / "study.svg").read_text(encoding="utf-8").count("What skill adds: 0.250 ") == 1  # of four metrics
    assert "0, 1; scenarios: 24, of 2 relations" in page
    plain, better = page.partition("\nplain (what all arms have in common)")[2].split("\nbetter (score.skill = 0.9)")
    assert "| reversion | **0.667** " in plain and "| reversion | **0.917** " in better
    write_study(tmp_path / "half", "study.yaml", plan, ["ViT-B-32/openai"], rows, Bootstrap(resamples=100, level=0.5))
    half = (tmp_path / "half/study.md").read_text(encoding="utf-8")
    wide, narrow = ([line for line in text.splitlines() if line.startswith("| What skill")] for text in (page, half))
    assert all(map(str.__ne__, wide[:2], narrow[:2]))  # what trainings add does not vary here
    assert (tmp_path / "study.svg").read_text(encoding="utf-8").startswith("<svg xmlns=")
    arms = {"plain": {}, "better": {"invert.reversion.skill": 1}, "as_good": {"invert.reversion.skill": 2}}
    search = plan.model_copy(update={"contrasts": [], "arms": arms})
    as_good = rows[rows["arm"] == "better"].assign(arm="as_good")  # of equals the plan's first is named
    write_study(
        tmp_path / "search",
        "search.yaml",
        search,
        ["ViT-B-32/openai"],
        pd.concat([rows, as_good], ignore_index=True),
        FEW,
    )
    found = (tmp_path / "search" / "study.md").read_text(encoding="utf-8")
    assert "- reversion: better, " in found and "- relation words" not in found
    before = {path.name: path.read_bytes() for path in tmp_path.glob("study.*")}
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], rows, FEW)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("study.*")}


def test_contrasts_are_told_though_the_first_metric_is_undefined(repository: Path, tmp_path: Path) -> None:
    plan = load_plan(repository / "study.yaml").model_copy(update={"metrics": ["direction", "scene_accuracy"]})
    tables = [score_table("hug", "reversion").assign(arm=arm, trial=0) for arm in ("plain", "better")]
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], pd.concat(tables, ignore_index=True), FEW)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "| What skill adds | – | " in page and "study.svg" in page and "best arm" not in page
    search = plan.model_copy(update={"contrasts": []})  # whose arms change nothing of a method
    write_study(tmp_path, "study.yaml", search, ["ViT-B-32/openai"], pd.concat(tables, ignore_index=True), FEW)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "What skill adds" not in page and "best arm" not in page and "## Arm by arm" in page


def test_a_lead_in_one_relation_of_two_is_sure_for_these_two_alone(repository: Path, tmp_path: Path) -> None:
    contrast = {"title": "What skill adds", "left": "better/reversion", "right": "plain/reversion"}
    plan = load_plan(repository / "study.yaml").model_copy(update={"contrasts": [Contrast(**contrast)]})
    rows = pd.DataFrame(
        [
            {"arm": arm, "trial": 0, "relation": relation, "method": "reversion", "index": index, "held_out": False}
            | dict.fromkeys(["scene_accuracy", "relation_accuracy", "entity_accuracy"], float(right))
            | {"leakage": 0.0}
            for relation in ("inside", "hug")
            for arm, right in (("plain", relation == "hug"), ("better", True))
            for index in range(10)
        ]
    )
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], rows, FEW)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    large, these = page.partition(DIFFERENCES["scenarios"])[::2]
    assert "| What skill adds | +0.500 (−1.000 … +1.000) |" in large
    assert "| What skill adds | **+0.500** (+0.500 … +0.500) |" in these
    assert "the two apart" in large and 'class="s2"' not in (tmp_path / "study.svg").read_text()  # in general
    assert INTERVALS in page  # how far to trust intervals over so few relations
    assert "One seed cannot say" in page and DIFFERENCES["trainings"] not in page and "Seed by seed" not in page


def test_a_lead_in_one_training_of_two_is_sure_for_these_trainings_alone(repository: Path, tmp_path: Path) -> None:
    contrast = {"title": "What|skill adds", "left": "better/reversion", "right": "plain/reversion"}
    plan = load_plan(repository / "study.yaml").model_copy(update={"contrasts": [Contrast(**contrast)]})
    rows = pd.DataFrame(
        [
            {"arm": arm, "trial": trial, "relation": relation, "method": "reversion", "index": index, "held_out": False}
            | dict.fromkeys(["scene_accuracy", "relation_accuracy", "entity_accuracy"], float(right))
            | {"leakage": 0.0}
            for relation in ("inside", "hug")
            for trial in (0, 1)
            for arm, right in (("plain", trial == 0), ("better", True))
            for index in range(10)
        ]
    )
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], rows, FEW)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    these, others = page.partition(DIFFERENCES["trainings"])[::2]
    assert "Other trainings have" in these and these.count("| What\\|skill adds | **+0.500** (+0.500 … +0.500) |") == 2
    assert "| What\\|skill adds | +0.500 (−0.598 … +1.000) |" in others  # else it would be two cells
    assert "excludes zero). Seed by seed: +0.000, +1.000.\n" in page


def test_a_failed_trial_names_its_log_and_no_other_is_begun(repository: Path) -> None:
    arms = {"broken": {"score.skill": -1}, "later": {"score.skill": 0.55}}
    plan = load_plan(repository / "study.yaml").model_copy(update={"arms": arms, "contrasts": []})
    planned = trials(repository, plan)
    with pytest.raises(UserError, match=r"experiment 'study-broken-seed0-\w+' failed"):
        run_all(repository, planned)
    assert not (repository / LOGS / f"{planned[1].name}.log").exists()


def test_names_change_with_what_decides_scores_and_with_nothing_else(repository: Path) -> None:
    plan = load_plan(repository / "study.yaml")

    def name() -> str:
        return trials(repository, plan)[0].name

    before = name()
    (repository / "relinv/metrics/__pycache__").mkdir()
    for unseen in ("relinv/metrics/__pycache__/skill.pyc", "data/exemplars/.DS_Store"):
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
        command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONHASHSEED": seed}
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


@pytest.mark.parametrize("higher", [False, None])
def test_a_search_names_no_best_by_a_metric_that_a_method_lacks_or_that_has_no_better_end(
    higher: bool | None, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(READINGS, "leakage", Reading("leakage", higher))
    arms = {"a": {"invert.reversion.skill": 1}, "b": {"presets.dreambooth.long.skill": 1}}
    changes = {"arms": arms, "contrasts": [], "metrics": ["leakage"]}
    plan = load_plan(repository / "study.yaml").model_copy(update=changes)
    tables = [score_table("hug", method).assign(arm=arm) for method in ("reversion", "dreambooth") for arm in arms]
    rows = pd.concat(tables, ignore_index=True).assign(trial=0, leakage=0.25)
    rows.loc[rows["arm"] == "b", "leakage"] = 0.125  # the lower, the better
    rows.loc[rows["method"] == "reversion", "leakage"] = float("nan")
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], rows, FEW)
    best = (tmp_path / "study.md").read_text(encoding="utf-8").partition("best arm")[2].partition("## Arm")[0]
    assert ("- dreambooth: b, leakage 0.125" in best) == (higher is False) and "reversion" not in best


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


@pytest.mark.parametrize(
    "value",
    [None, True, 7, 0.00004, "shared", "2026", "null", "true", "1e3", "2026-01-31", "", "cat <r> box, in 'snow' \\",
     "it's", 'so-called "red"', "${base} and ${none}", "$x", "a=b: c # d", ["on", "hug"],
     ["cat <r> box, red", None, [0.1, 2]],
     {"layout": {"scale": 2.0, "head": []}}, {}],
)  # fmt: skip
def test_overrides_are_written_as_dvc_reads_them(value: Any, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("prompt:\nadapters: {perfusion: {beta: 0.5, tau: 1}}\n")
    values = read_yaml(file)
    changes = {"prompt": value, "adapters": {"perfusion": {"beta": value}, "layout": {"scale": value}}}
    with changed_params(tmp_path, [as_override(*change) for change in changes.items()]):
        found = read_yaml(file)
    assert repr(found) == repr(overridden(values, changes))


def test_other_scenes_at_the_same_places_are_not_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    table = with_leakage(score_table("inside", "reversion").assign(scene_accuracy=0.0))
    moved = table.assign(scene_accuracy=1.0)
    moved.loc[moved.index < 9, "head"] = "kangaroo"  # 3 of 12 scenes are those of the first
    moved.loc[moved.index >= 10, "scene_accuracy"] = 0.0
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: {"a": table, "b": moved}[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: {})
    means, differences = compare(Path(), ["a", "b"], FEW).methods["reversion"]
    assert means.caption == "Means with intervals over the 3 scenarios that all have"
    assert [line.cells[0].mean for line in means.lines] == pytest.approx([0, 1 / 3])
    assert differences.lines[0].cells[0].mean == pytest.approx(1 / 3)
    moved.loc[moved.index == 9, "scene_accuracy"] = 0.0
    same = compare(Path(), ["a", "b"], FEW)  # in the scenes they share
    assert same.same == ["reversion"]
    assert as_lines(same).splitlines()[1:] == ["The same on all scenarios they share: reversion"]
    page = as_html(same)
    assert "<p>The same on all scenarios they share: reversion.</p>" in page and "<h2>reversion" not in page
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: tables[revision])
    tables = {"a": table, "b": table, "c": table.assign(method="multires")}
    third = compare(Path(), ["a", "b", "c"], FEW)  # which did not run the method that the others agree in
    assert third.same == [] and len(third.methods["reversion"]) == 2
    tables["b"] = moved
    moved["head"] = "kangaroo"
    (means,) = compare(Path(), ["a", "b"], FEW).methods["reversion"]
    assert means.caption.endswith("each over its own scenarios, for none is in all")
    assert [line.cells[0].mean for line in means.lines] == pytest.approx([0, 9 / 12])


def test_a_grid_that_has_grown_shares_the_scenes_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    table = with_leakage(score_table("inside", "reversion").assign(scene_accuracy=0.0))
    grown = table.assign(scene_accuracy=1.0, index=table["index"] + table["index"] // 4)  # a tail more for each head
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: {"a": table, "b": grown}[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: {})
    means, differences = compare(Path(), ["a", "b"], FEW).methods["reversion"]
    assert means.caption == "Means with intervals over the 12 scenarios that all have"
    assert differences.lines[0].cells[0].mean == 1


def test_scenes_of_another_tail_are_others_and_scores_are_the_same_only_if_all_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = with_leakage(score_table("inside", "reversion").assign(direction=0.0))
    turned, moved = table.assign(direction=1.0), table.assign(direction=1.0)
    moved.loc[moved.index < 9, "tail"] = "kangaroo"
    scores = {"a": table, "turned": turned, "moved": moved}
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: scores[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: {})
    for revision, count in (("turned", 12), ("moved", 3)):
        means, _ = compare(Path(), ["a", revision], FEW).methods["reversion"]
        assert means.caption == f"Means with intervals over the {count} scenarios that all have"


def test_of_two_bases_the_entries_in_use_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"bases.small.model.device": "cpu", "bases.small.model.precision": "fp32"}
    values = {
        "a": {"base": "small"} | both,
        "b": {"base": "other", "bases.other.model.device": "cpu", "bases.other.model.precision": "bf16"} | both,
        "c": {"base": "small"} | both | {"bases.small.model.precision": "bf16"},
    }
    monkeypatch.setattr(
        "relinv.report.compare.scores_at", lambda root, revision: with_leakage(score_table("inside", "reversion"))
    )
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: values[revision])
    changed = {"base": ["small", "other"], "bases.${base}.model.precision": ["fp32", "bf16"]}
    assert compare(Path(), ["a", "b"], FEW).parameters == changed
    assert compare(Path(), ["a", "c"], FEW).parameters == {"bases.small.model.precision": ["fp32", "bf16"]}


def test_a_method_is_compared_among_the_revisions_that_ran_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (with_leakage(score_table("inside", name)) for name in ("reversion", "textual_inversion"))
    worse = ours.assign(scene_accuracy=0.0)
    scores = {"my_run": ours, "b": pd.concat([ours, theirs]), "c": pd.concat([theirs, worse[:6]])}
    values = {"my_run": {"seed": 0}, "b": {"seed": 0, "new": 2}, "c": {"seed": 1, "new": 2}}
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: scores[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: values[revision])
    comparison = compare(Path(), list(scores), FEW)
    assert comparison.parameters == {"seed": [0, 0, 1], "new": ["–", 2, 2]}
    assert {
        method: [(table.caption, [line.name for line in table.lines]) for table in tables]
        for method, tables in comparison.methods.items()
    } == {
        "reversion": [
            ("Means with intervals over the 6 scenarios that all have", ["my_run", "b", "c"]),
            (DIFFERENCES["relations"], ["b − my_run", "c − my_run"]),
        ],
        "textual inversion": [
            ("Means with intervals over the 12 scenarios that all have", ["b", "c"]),
            (DIFFERENCES["relations"], ["c − b"]),
        ],
    }
    assert all(name in as_lines(comparison) for name in ("b − my_run", "c − my_run", "c − b"))
    without = {name: rows.assign(direction=float("nan")) for name, rows in scores.items()}
    for name, rows in scores.items():  # defined by scenarios alone that the others lack
        scores[name] = pd.concat([without[name], rows.assign(relation=name, direction=1.0)])
    assert "direction" not in as_lines(compare(Path(), list(scores), FEW))


def test_a_plan_of_an_unknown_base_is_told(repository: Path) -> None:
    plan = load_plan(repository / "study.yaml").model_copy(update={"common": {"base": "bb"}, "contrasts": []})
    with pytest.raises(UserError, match=r"Unknown base 'bb'. Did you mean 'b'"):
        trials(repository, plan)


def test_scores_of_two_judges_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = with_leakage(score_table("inside", "reversion"))
    scores = {"a": rows.assign(judge="one"), "b": rows.assign(judge="two"), "c": rows.assign(judge="one"), "d": rows}
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: scores[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: {})
    for others, told in (("b", True), ("c", False), ("d", False)):
        comparison = compare(Path(), ["a", others], FEW)
        assert ("2 judges scored: differences may be theirs" in as_lines(comparison)) == told
        assert ("2 judges scored: differences may be theirs" in as_html(comparison)) == told


def test_parameters_of_a_revision_are_those_in_force(repository: Path) -> None:
    both = PARAMS.replace("reversion: {}", "reversion: {long: {steps: 3000}, short: {steps: 9}}\n  other: {long: {}}")
    long = both.replace("preset:\n", "preset: long\n")
    short = long.replace("invert:\n", "invert:\n  preset: short\n")
    try:
        for params, of_presets in (
            (both, {}),
            (long, {"presets.reversion.long.steps": 3000}),
            (short, {"presets.reversion.short.steps": 9}),
        ):
            (repository / "params.yaml").write_text(params)
            found = params_at(repository, "workspace")
            assert {name: value for name, value in found.items() if name.startswith("presets")} == of_presets
        for wrong, told in (
            (long.replace("other: {long: {}}", "other:"), r"'presets\.other' is null in params\.yaml of workspace"),
            ("relations: [", r"params\.yaml of workspace is not valid YAML"),
        ):
            (repository / "params.yaml").write_text(wrong)
            with pytest.raises(UserError, match=told):
                params_at(repository, "workspace")
    finally:
        (repository / "params.yaml").write_text(PARAMS)


def test_leakage_of_another_revision_is_measured_as_today(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [score_table("hug", method) for method in ("relation_words", "reversion")]
    rows = with_leakage(pd.concat(tables, ignore_index=True))
    stored = format_rows(rows.assign(leakage=1.0)).encode()  # by an earlier definition
    monkeypatch.setattr("relinv.report.revisions.read_at", lambda *place: stored)
    measured = scores_at(HERE, "HEAD")["leakage"]
    pd.testing.assert_series_equal(measured, rows["leakage"], atol=2e-6)


def test_missing_revisions_and_scores_are_named(repository: Path) -> None:
    for name in ("", "HEAD^{tree}"):
        with pytest.raises(UserError, match=f"There is no revision '{re.escape(name)}': name a commit"):
            scores_at(repository, name)
    with pytest.raises(UserError, match="There is no revision 'nowhere'"):
        scores_at(repository, "nowhere")
    with pytest.raises(UserError, match=r"'HEAD~1' holds no reports/scores\.csv"):
        scores_at(repository, "HEAD~1")
    with pytest.raises(UserError, match="two revisions at least"):
        compare(repository, ["main", "main"], FEW)


def test_parameters_are_flattened() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
