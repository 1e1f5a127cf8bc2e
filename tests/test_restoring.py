"""The committed parameters and results come back after experiments, and nothing else is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from relinv.errors import UserError
from relinv.pipeline import restoring
from relinv.pipeline.repository import git
from relinv.pipeline.restoring import restore
from tests.checkouts import run as relinv
from tests.studying import PARAMS, runner

CHANGED = PARAMS.replace("skill: 0.6", "skill: 0.9").replace("reversion: {}", "reversion: {long: {steps: 9}}")


@pytest.fixture(scope="module")
def run_twice(repository: Path) -> Path:
    """A repository with a committed run, after another run with other parameters."""
    (repository / "params.yaml").write_text(CHANGED)
    runner(repository)(sys.executable, "-m", "dvc", "repro", "--quiet")
    for name in ("kissing.png", "kissing-reversion.png"):
        (repository / "reports/grids" / name).write_text("of a relation that the committed run lacks")
    (repository / "data/relations/kissing").mkdir(parents=True)
    return repository


@pytest.fixture
def copy(run_twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that repository; commands run in it."""
    monkeypatch.chdir(shutil.copytree(run_twice, tmp_path / "copy"))
    return tmp_path / "copy"


def test_parameters_and_results_come_back_and_what_had_changed_is_kept(copy: Path) -> None:
    run = runner(copy)
    scores = run("git", "show", "HEAD:reports/scores.csv")
    (copy / "notes.txt").write_text("mine")
    (copy / "reports/README.md").write_text("mine")
    for name in ("holiday.png", "kissing.txt", "mine/kissing.png"):
        (copy / "reports/grids" / name).parent.mkdir(exist_ok=True)
        (copy / "reports/grids" / name).write_text("mine")
    (copy / "make.py").write_text("# mine\n" + (copy / "make.py").read_text())
    (copy / "data/reversion").unlink()  # which DVC's cache still has
    assert (copy / "reports/scores.csv").read_text() != scores
    back, kept = relinv("restore").splitlines()
    assert back == "The committed parameters and results are back."
    assert (copy / "params.yaml").read_text() == PARAMS
    assert (copy / "reports/scores.csv").read_text() == scores and (copy / "data/reversion").exists()
    status = run("git", "status", "--porcelain").splitlines()
    mine = ["holiday.png", "kissing.txt", "mine/"]
    assert status == [" M make.py", " M reports/README.md", "?? notes.txt", *(f"?? reports/grids/{n}" for n in mine)]
    run(*kept.removeprefix("How the parameters differed is kept: ").split())  # git apply FILE
    assert (copy / "params.yaml").read_text() == CHANGED
    run("git", "checkout", "--quiet", ".")
    assert relinv("restore").splitlines() == [back]  # there is nothing to keep


def test_a_branch_that_an_experiment_left_is_told(copy: Path) -> None:
    run = runner(copy)
    run("git", "branch", "--move", "mine")
    assert "no branch" not in relinv("restore")
    run("git", "checkout", "--quiet", "--detach")  # as `dvc exp run` does
    told = "git is on no branch, as a killed experiment leaves it: {}, so that what you commit is on one.\n"
    assert relinv("restore").startswith(told.format("`git switch mine`"))
    run("git", "branch", "other")
    assert relinv("restore").startswith(told.format("`git switch mine` or `git switch other`"))
    run("git", "branch", "--delete", "--force", "mine", "other")
    assert relinv("restore").startswith(told.format("`git switch main`"))


def test_what_an_earlier_time_kept_stays(copy: Path) -> None:
    (first,) = restore(copy).kept
    runner(copy)("git", "apply", str(first))
    (copy / "params.yaml").write_text(CHANGED + "# mine\n")
    runner(copy)("git", "add", "params.yaml")
    (copy / "params.yaml").write_text(PARAMS)
    (second,) = restore(copy).kept  # of what is staged alone
    assert first != second
    assert "skill: 0.9" in first.read_text() and "skill: 0.9" in second.read_text()


def test_what_is_staged_is_kept_beside_what_has_changed_since(copy: Path) -> None:
    runner(copy)("git", "add", "params.yaml")
    (copy / "params.yaml").write_text(PARAMS + "# mine\n")
    changed, staged = restore(copy).kept
    assert "# mine" in changed.read_text() and "skill: 0.9" not in changed.read_text()
    assert "skill: 0.9" in staged.read_text()


def test_what_had_changed_is_kept_to_the_byte(copy: Path) -> None:
    changed = CHANGED.encode() + b"# M\xfcller\n"
    (copy / "params.yaml").write_bytes(changed)
    (kept,) = restore(copy).kept
    runner(copy)("git", "apply", str(kept))
    assert (copy / "params.yaml").read_bytes() == changed


def test_what_git_was_told_of_is_kept_too_and_what_dvc_alone_has_comes_back(copy: Path) -> None:
    run = runner(copy)
    run("git", "add", "params.yaml")
    (copy / "data/reversion").unlink()
    (kept,) = restore(copy).kept
    assert (copy / "data/reversion").exists()
    assert run("git", "status", "--porcelain") == ""
    run("git", "apply", str(kept))
    assert "skill: 0.9" in (copy / "params.yaml").read_text()


def test_what_a_retrained_miniature_came_from_stays(copy: Path) -> None:
    lock = copy / "data/miniature/dvc.lock"
    committed = lock.read_text()
    lock.write_text("what saving an experiment writes")
    restore(copy)
    assert lock.read_text() == committed
    lock.write_text("retrained")
    (copy / "data/miniature/weights").write_text("retrained")
    restore(copy)
    assert lock.read_text() == "retrained"


def test_what_the_cache_lacks_is_named_and_all_else_comes_back(copy: Path) -> None:
    lost = copy / ".dvc/cache/files/md5"
    lost.rename(copy / "elsewhere")
    (copy / "data/reversion").unlink()
    told, cause, kept = relinv("restore").splitlines()
    assert told == "The committed parameters are back, and the results but for 1 (data/reversion)."
    assert cause.endswith("`dvc repro` makes them.") and kept.startswith("How the parameters differed is kept:")
    assert (copy / "params.yaml").read_text() == PARAMS
    assert restore(copy).lacking == ["data/reversion"]
    shutil.rmtree(lost, ignore_errors=True)
    (copy / "elsewhere").rename(lost)
    assert restore(copy).lacking == []
    assert (copy / "data/reversion").exists()


def test_what_dvc_refuses_is_told_with_where_the_parameters_are(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "dvc", MagicMock(side_effect=UserError("`dvc checkout` failed: Permission denied")))
    with pytest.raises(UserError, match=r"(?s)denied.*they differed is kept in .*\.diff\. Correct this and run"):
        restore(copy)


def test_what_dvc_has_no_copy_of_is_not_lost(copy: Path) -> None:
    (copy / "data/reversion").unlink()
    (copy / "data/reversion").write_text("learned without DVC")
    with pytest.raises(UserError, match=r"(?s)data/reversion.*DVC has no copy of these files: .*checkout --force` and"):
        restore(copy)
    assert (copy / "data/reversion").read_text() == "learned without DVC"
    runner(copy)(sys.executable, "-m", "dvc", "checkout", "--quiet", "--force")
    assert restore(copy).lacking == []


@pytest.mark.parametrize("kind", ["read", "write"])
def test_nothing_changes_under_a_stage_that_is_running(kind: str, copy: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    by = [{"pid": pid, "cmd": "dvc exp run"} for pid in (ended.pid, os.getpid())]
    locks = {"read": {"data": by}, "write": {}} if kind == "read" else {"read": {"data": by[:1]}, "write": {"d": by[1]}}
    (copy / ".dvc/tmp/rwlock").write_text(json.dumps(locks))
    with pytest.raises(UserError, match=rf"running here, by process {os.getpid()} \(dvc exp run\): wait until"):
        restore(copy)
    assert (copy / "params.yaml").read_text() == CHANGED
    (copy / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {"data": by[:1]}, "write": {}}))
    restore(copy)  # that process was killed
    (copy / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {"data": by}, "write": {}}))
    os.utime(copy / ".dvc/tmp/rwlock", (0, 0))
    restore(copy)  # so was the other, whose number a process has that was started since
    assert (copy / "params.yaml").read_text() == PARAMS


def test_a_damaged_list_of_locks_is_told_with_what_to_do(copy: Path) -> None:
    (copy / ".dvc/tmp/rwlock").write_text("")  # as a kill leaves it while DVC writes
    with pytest.raises(UserError, match=r"rwlock', is damaged: run this again, or if no stage runs here, remove it\."):
        restore(copy)
    assert (copy / "params.yaml").read_text() == CHANGED


def test_what_git_says_in_other_bytes_is_passed_on(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    with pytest.raises(UserError, match=re.escape("fatal: ambiguous argument 'caf\N{REPLACEMENT CHARACTER}'")):
        git(tmp_path, "show", "caf\udce9")


@pytest.mark.parametrize(("file", "reason"), [(None, "There is no dvc.yaml in"), ("dvc.yaml", "not a git repository")])
def test_outside_a_repository_nothing_is_done(file: str | None, reason: str, tmp_path: Path) -> None:
    for name in ("params.yaml", *([file] if file else [])):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=reason):
        restore(tmp_path)
    assert (tmp_path / "params.yaml").read_text() == "mine"
