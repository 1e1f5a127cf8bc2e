"""The committed parameters and results come back after experiments, and nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from relinv.errors import UserError
from relinv.pipeline import restoring
from relinv.pipeline.restoring import restore
from tests.checkouts import run as relinv
from tests.studying import PARAMS, runner, write_repository

CHANGED = PARAMS.replace("skill: 0.6", "skill: 0.9").replace("reversion: {}", "reversion: {long: {steps: 9}}")


@pytest.fixture(scope="module")
def run_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a committed run, after another run with other parameters."""
    root = tmp_path_factory.mktemp("run_twice")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path.cwd()))
        write_repository(root)
        (root / "params.yaml").write_text(CHANGED)
        runner(root)(sys.executable, "-m", "dvc", "repro", "--quiet")
    for name in ("kissing.png", "kissing-reversion.png"):
        (root / "reports/grids" / name).write_text("of a relation that the committed run lacks")
    (root / "data/relations/kissing").mkdir(parents=True)
    return root


@pytest.fixture
def repository(run_twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that repository; commands run in it."""
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(shutil.copytree(run_twice, tmp_path / "copy"))
    return tmp_path / "copy"


def test_parameters_and_results_come_back_and_what_had_changed_is_kept(repository: Path) -> None:
    run = runner(repository)
    scores = run("git", "show", "HEAD:reports/scores.csv")
    (repository / "notes.txt").write_text("mine")
    (repository / "reports/README.md").write_text("mine")
    for name in ("holiday.png", "kissing.txt", "mine/kissing.png"):
        (repository / "reports/grids" / name).parent.mkdir(exist_ok=True)
        (repository / "reports/grids" / name).write_text("mine")
    (repository / "make.py").write_text("# mine\n" + (repository / "make.py").read_text())
    (repository / "data/reversion").unlink()  # which DVC's cache still has
    assert (repository / "reports/scores.csv").read_text() != scores
    back, kept = relinv("restore").splitlines()
    assert back == "The committed parameters and results are back."
    assert (repository / "params.yaml").read_text() == PARAMS
    assert (repository / "reports/scores.csv").read_text() == scores and (repository / "data/reversion").exists()
    status = run("git", "status", "--porcelain").splitlines()
    mine = ["holiday.png", "kissing.txt", "mine/"]
    assert status == [" M make.py", " M reports/README.md", "?? notes.txt", *(f"?? reports/grids/{n}" for n in mine)]
    run(*kept.removeprefix("How the parameters differed is kept: ").split())  # git apply FILE
    assert (repository / "params.yaml").read_text() == CHANGED
    run("git", "checkout", "--quiet", ".")
    assert relinv("restore").splitlines() == [back]  # there is nothing to keep


def test_a_branch_that_an_experiment_left_is_told(repository: Path) -> None:
    run = runner(repository)
    run("git", "branch", "--move", "mine")
    assert "no branch" not in relinv("restore")
    run("git", "checkout", "--quiet", "--detach")  # as `dvc exp run` does
    told = "git is on no branch, as a killed experiment leaves it: {}, so that what you commit is on one.\n"
    assert relinv("restore").startswith(told.format("`git switch mine`"))
    run("git", "branch", "other")
    assert relinv("restore").startswith(told.format("`git switch mine` or `git switch other`"))
    run("git", "branch", "--delete", "--force", "mine", "other")
    assert relinv("restore").startswith(told.format("`git switch main`"))


def test_what_an_earlier_time_kept_stays(repository: Path) -> None:
    (first,) = restore(repository).kept
    runner(repository)("git", "apply", str(first))
    (repository / "params.yaml").write_text(CHANGED + "# mine\n")
    runner(repository)("git", "add", "params.yaml")
    (repository / "params.yaml").write_text(PARAMS)
    (second,) = restore(repository).kept  # of what is staged alone
    assert first != second
    assert "skill: 0.9" in first.read_text() and "skill: 0.9" in second.read_text()


def test_what_is_staged_is_kept_beside_what_has_changed_since(repository: Path) -> None:
    runner(repository)("git", "add", "params.yaml")
    (repository / "params.yaml").write_text(PARAMS + "# mine\n")
    changed, staged = restore(repository).kept
    assert "# mine" in changed.read_text() and "skill: 0.9" not in changed.read_text()
    assert "skill: 0.9" in staged.read_text()


def test_what_git_was_told_of_is_kept_too_and_what_dvc_alone_has_comes_back(repository: Path) -> None:
    run = runner(repository)
    run("git", "add", "params.yaml")
    (repository / "data/reversion").unlink()
    (kept,) = restore(repository).kept
    assert (repository / "data/reversion").exists()
    assert run("git", "status", "--porcelain") == ""
    run("git", "apply", str(kept))
    assert "skill: 0.9" in (repository / "params.yaml").read_text()


def test_what_a_retrained_miniature_came_from_stays(repository: Path) -> None:
    lock = repository / "data/miniature/dvc.lock"
    committed = lock.read_text()
    lock.write_text("what saving an experiment writes")
    restore(repository)
    assert lock.read_text() == committed
    lock.write_text("retrained")
    (repository / "data/miniature/weights").write_text("retrained")
    restore(repository)
    assert lock.read_text() == "retrained"


def test_what_the_cache_lacks_is_named_and_all_else_comes_back(repository: Path) -> None:
    lost = repository / ".dvc/cache/files/md5"
    lost.rename(repository / "elsewhere")
    (repository / "data/reversion").unlink()
    told, cause, kept = relinv("restore").splitlines()
    assert told == "The committed parameters are back, and the results but for 1 (data/reversion)."
    assert cause.endswith("`dvc repro` makes them.") and kept.startswith("How the parameters differed is kept:")
    assert (repository / "params.yaml").read_text() == PARAMS
    assert restore(repository).lacking == ["data/reversion"]
    shutil.rmtree(lost, ignore_errors=True)
    (repository / "elsewhere").rename(lost)
    assert restore(repository).lacking == []
    assert (repository / "data/reversion").exists()


def test_what_dvc_refuses_is_told_with_where_the_parameters_are(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "dvc", MagicMock(side_effect=UserError("`dvc checkout` failed: Permission denied")))
    with pytest.raises(UserError, match=r"(?s)denied.*they differed is kept in .*\.diff\. Correct this and run"):
        restore(repository)


def test_what_dvc_has_no_copy_of_is_not_lost(repository: Path) -> None:
    (repository / "data/reversion").unlink()
    (repository / "data/reversion").write_text("learned without DVC")
    with pytest.raises(UserError, match=r"(?s)data/reversion.*DVC has no copy of these files: .*checkout --force` and"):
        restore(repository)
    assert (repository / "data/reversion").read_text() == "learned without DVC"
    runner(repository)(sys.executable, "-m", "dvc", "checkout", "--quiet", "--force")
    assert restore(repository).lacking == []


@pytest.mark.parametrize("kind", ["read", "write"])
def test_nothing_changes_under_a_stage_that_is_running(kind: str, repository: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    by = [{"pid": pid, "cmd": "dvc exp run"} for pid in (ended.pid, os.getpid())]
    locks = {"read": {"data": by}, "write": {}} if kind == "read" else {"read": {"data": by[:1]}, "write": {"d": by[1]}}
    (repository / ".dvc/tmp/rwlock").write_text(json.dumps(locks))
    with pytest.raises(UserError, match=rf"running here, by process {os.getpid()} \(dvc exp run\): wait until"):
        restore(repository)
    assert (repository / "params.yaml").read_text() == CHANGED
    (repository / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {"data": by[:1]}, "write": {}}))
    restore(repository)  # that process was killed
    (repository / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {"data": by}, "write": {}}))
    os.utime(repository / ".dvc/tmp/rwlock", (0, 0))
    restore(repository)  # so was the other, whose number a process has that was started since
    assert (repository / "params.yaml").read_text() == PARAMS


@pytest.mark.parametrize(("file", "reason"), [(None, "There is no dvc.yaml in"), ("dvc.yaml", "not a git repository")])
def test_outside_a_repository_nothing_is_done(file: str | None, reason: str, tmp_path: Path) -> None:
    for name in ("params.yaml", *([file] if file else [])):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=reason):
        restore(tmp_path)
    assert (tmp_path / "params.yaml").read_text() == "mine"
