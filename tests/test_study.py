"""Running studies, in a small repository whose stages write made-up scores."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from relinv.errors import UserError
from relinv.fetching.downloads import cache_folder
from relinv.fetching.fetch import fetch_exemplars
from relinv.report.compare import compare
from relinv.report.revisions import params_at
from relinv.settings import ExemplarSettings, ExemplarSource
from relinv.study.checkout import experiments, open_checkout
from relinv.study.plan import load_plan, trials
from relinv.study.running import LOGS, finished
from relinv.study.summary import gather, keep_reports
from stages.compare import compare as compare_command
from stages.study import study as study_command
from tests.reporting import FEW
from tests.studying import HERE, PARAMS, run_all, runner, two_arms
from tests.waiting import wait_until

USER = {"name": "Me", "email": "me@example.org"}


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


def test_a_preset_that_an_arm_changes_is_changed_for_that_arm_alone(own_repository: Path) -> None:
    params = PARAMS.replace("invert:\n", "invert:\n  preset: long\n").replace("{}", "{long: {steps: 9}}")
    (own_repository / "params.yaml").write_text(params)
    arms = {"shorter": {"presets.reversion.long.steps": 3}, "long": {}}
    plan = load_plan(own_repository / "study.yaml").model_copy(update={"arms": arms, "contrasts": []})
    commits = run_all(own_repository, planned := trials(own_repository, plan))
    found = [params_at(own_repository, commits[trial.name])["presets.reversion.long.steps"] for trial in planned]
    assert found == [3, 9]


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


@pytest.mark.usefixtures("by_git_alone")
def test_a_new_folder_is_in_a_checkout_as_long_as_it_is_there(own_repository: Path, tmp_path: Path) -> None:
    names = ("relinv/mine/new.py", "stages/mine/new.py", "data/benchmark/mine.yaml")
    for name in names:
        (own_repository / name).parent.mkdir(parents=True)
        (own_repository / name).write_text("mine")
    checkout = open_checkout(own_repository, tmp_path / "checkout")
    assert [(checkout / name).read_text() for name in names] == ["mine"] * 3
    for name in names:
        shutil.rmtree((own_repository / name).parent)
        (own_repository / name).parent.parent.mkdir(exist_ok=True)
    open_checkout(own_repository, checkout)
    assert not any((checkout / name).parent.exists() for name in names)


def test_a_study_runs_after_an_experiment_without_the_committed_pictures(own_repository: Path) -> None:
    (own_repository / "reports/grids/hug.png").unlink()  # as one of other relations does
    planned = two_arms(own_repository)[:1]
    assert set(run_all(own_repository, planned)) == {trial.name for trial in planned}


@pytest.fixture
def by_git_alone(own_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open checkouts without telling DVC where its cache is, for tests in which it is never run: that takes seconds."""
    monkeypatch.setattr("relinv.study.checkout.dvc", lambda root, *words: str(own_repository / ".dvc/cache"))


@pytest.mark.usefixtures("by_git_alone")
def test_a_studys_files_are_the_users_to_the_byte(
    own_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("COUNT", "1"), ("KEY_0", "apply.whitespace"), ("VALUE_0", "error")):  # as a person's may be
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    for content in (b"changed = 1  \r\n", b"#\r\nchanged = 'M\xfcller'\r\n", "# −\n".encode(), b"\0\1"):
        for attempt in (content, content + content):  # from another program's line ends, and within them
            (own_repository / "make.py").write_bytes(attempt)
            for name, value in USER.items():  # of this checkout alone
                runner(own_repository)("git", "config", f"user.{name}", value)
            assert (open_checkout(own_repository, tmp_path / "checkout") / "make.py").read_bytes() == attempt
            runner(own_repository)("git", "commit", "--quiet", "-a", "-m", "changed")
    told = {name: runner(tmp_path / "checkout")("git", "config", "--local", f"user.{name}") for name in USER}
    assert told == {name: f"{value}\n" for name, value in USER.items()}


@pytest.mark.usefixtures("by_git_alone")
def test_a_study_has_a_persons_own_exemplars(own_repository: Path, tmp_path: Path) -> None:
    own = own_repository / "data/exemplars/own/kissing"
    own.mkdir(parents=True)
    names = {two_arms(own_repository)[0].name}
    for content in ("first", "second"):
        (own / "text.json").write_text(content)
        (own / ".0.png.tmp").symlink_to("nowhere")
        (own / ".1.png.tmp").touch()  # still being written
        names.add(two_arms(own_repository)[0].name)
        checkout = open_checkout(own_repository, tmp_path / "checkout")
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
        runner(own_repository)("git", "config", *setting.split("="))
    (own_repository / "make.py").write_text("changed = True\n")
    (own_repository / "params.yaml").write_text(changed := PARAMS.replace("skill: 0.6", "skill: 0.5"))
    assert (open_checkout(own_repository, tmp_path / "checkout") / "params.yaml").read_text() == changed
    assert (open_checkout(own_repository, tmp_path / "checkout") / "make.py").read_text() == "changed = True\n"
    assert not (open_checkout(own_repository, tmp_path / "checkout") / "data/exemplars/own/kissing").exists()


@pytest.mark.usefixtures("by_git_alone")
def test_a_checkout_goes_along_when_its_repository_is_moved(own_repository: Path, tmp_path: Path) -> None:
    open_checkout(own_repository, own_repository / ".scratch/checkout")
    moved = own_repository.rename(tmp_path / "moved")
    (moved / "make.py").write_text("changed = True\n")
    runner(moved)("git", "commit", "--quiet", "--all", "--message", "as it is now")
    checkout = open_checkout(moved, moved / ".scratch/checkout")
    assert (checkout / "make.py").read_text() == "changed = True\n"


@pytest.mark.usefixtures("by_git_alone")
def test_a_study_has_what_was_downloaded_before_it(
    exemplar_folder: Path, own_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ExemplarSource(source="folder", path="not here", manifest=None)
    shutil.copytree(exemplar_folder, kept := cache_folder(own_repository / ".scratch", source) / "inside")
    checkout = open_checkout(own_repository, tmp_path / "checkout")
    (checkout / ".scratch/downloads").unlink()
    (checkout / ".scratch/downloads/old").mkdir(parents=True)  # as studies once had it
    for attempt in ("first", "second"):
        monkeypatch.chdir(open_checkout(own_repository, checkout))
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


def test_a_study_runs_in_a_folder_of_any_name(own_repository: Path, tmp_path: Path) -> None:
    repository = own_repository.rename(tmp_path / "josé's own")
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


def test_a_failed_trial_names_its_log_and_no_other_is_begun(repository: Path) -> None:
    arms = {"broken": {"score.skill": -1}, "later": {"score.skill": 0.55}}
    plan = load_plan(repository / "study.yaml").model_copy(update={"arms": arms, "contrasts": []})
    planned = trials(repository, plan)
    with pytest.raises(UserError, match=r"experiment 'study-broken-seed0-\w+' failed"):
        run_all(repository, planned)
    assert not (repository / LOGS / f"{planned[1].name}.log").exists()
