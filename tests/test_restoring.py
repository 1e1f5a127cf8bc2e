"""The committed parameters and results come back after experiments, and nothing else is touched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from relinv.errors import UserError
from relinv.restoring import restore
from tests.studying import PARAMS, runner, write_repository


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a committed run, after another run with other parameters."""
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    write_repository(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS.replace("skill: 0.6", "skill: 0.9"))
    runner(tmp_path)(sys.executable, "-m", "dvc", "repro", "--quiet")
    (tmp_path / "reports/grids/kissing.png").write_text("a relation that the committed run lacks")
    return tmp_path


def test_parameters_and_results_come_back_and_what_had_changed_is_kept(repository: Path) -> None:
    run = runner(repository)
    scores = run("git", "show", "HEAD:reports/scores.csv")
    (repository / "notes.txt").write_text("mine")
    (repository / "make.py").write_text("# mine\n" + (repository / "make.py").read_text())
    assert (repository / "reports/scores.csv").read_text() != scores
    kept = restore(repository)
    assert (repository / "params.yaml").read_text() == PARAMS
    assert (repository / "reports/scores.csv").read_text() == scores
    assert run("git", "status", "--porcelain").split() == ["M", "make.py", "??", "notes.txt"]
    assert kept is not None
    run("git", "apply", str(kept))
    assert "skill: 0.9" in (repository / "params.yaml").read_text()
    run("git", "checkout", "--quiet", ".")
    assert restore(repository) is None  # there is nothing to bring back, and nothing to keep


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


def test_outside_a_repository_nothing_is_done(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"needs the git and DVC repository at .*: .*not a git repository"):
        restore(tmp_path)
    assert (tmp_path / "params.yaml").read_text() == "mine"
