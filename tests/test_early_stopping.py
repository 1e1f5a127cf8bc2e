"""Early stopping ends a training when its loss on fixed noise stands, and only then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relinv.diffusion.bases import Base
from relinv.learning import training
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.early_stopping import EVALUATIONS, EarlyStopping
from relinv.learning.inversion import identity, invert_relation, invert_together
from relinv.learning.problem import Task
from relinv.learning.training import Loop
from tests.inverting import build, problem, stopping


def after(losses: list[float]) -> EarlyStopping:
    return EarlyStopping(window=100, threshold=0.15, losses=losses)


def test_a_falling_loss_goes_on_and_one_that_stands_ends() -> None:
    falling = [1 - 0.04 * step for step in range(2 * EVALUATIONS)]
    assert not after(falling).is_over()  # a window of n has (n² - 1) / 12 of the variance, all of 2n (4n² - 1) / 12
    assert after([*falling, *[0.2] * EVALUATIONS]).is_over()


def test_the_share_of_variance_decides() -> None:
    steady, moving = [0.0, 1.0] * (EVALUATIONS // 2), [5.0, 6.0] * (EVALUATIONS // 2)
    # A window's variance is 1/4; all have 1/4 + (5/2)² = 6.5, of which it is 1/26.
    assert EarlyStopping(100, 1 / 25, [*steady, *moving]).is_over()
    assert not EarlyStopping(100, 1 / 27, [*steady, *moving]).is_over()


def test_it_needs_two_windows() -> None:
    assert not after([0.5] * (2 * EVALUATIONS - 1)).is_over()
    stop = EarlyStopping(window=40, threshold=0.1)
    assert [done for done in range(1, 13) if stop.is_due(done)] == [4, 8, 12]


def test_a_training_ends_early_and_says_how_many_steps_it_took(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    task = problem(base, exemplar_folder, "reversion", steps=60, stop_window=10, stop_threshold=0.9)
    invert_relation(task, tmp_path / "concept", tmp_path / "scratch")
    steps = json.loads((tmp_path / "concept" / "concept.json").read_text())["steps"]
    assert 2 * EVALUATIONS <= steps < 60
    assert len((tmp_path / "concept" / "losses.csv").read_text().splitlines()) == steps + 1


def test_a_training_that_was_stopped_ends_where_it_would_have(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = problem(base, exemplar_folder, "reversion", steps=60, stop_window=10, stop_threshold=0.9)
    invert_relation(task, tmp_path / "straight", tmp_path / "scratch")
    monkeypatch.setattr(Checkpoints, "is_due", lambda self: True)
    for after in (13, 1):  # between two looks at the fixed loss, and right after it went on
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training, "take_step", stopping(training.take_step, after))
            invert_relation(task, tmp_path / "stopped", tmp_path / "scratch")
    invert_relation(task, tmp_path / "stopped", tmp_path / "scratch")
    for name in ("learned_embeds.safetensors", "concept.json", "losses.csv"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_training_that_has_ended_early_is_not_gone_on_with(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([*[1.0] * EVALUATIONS, *[0.5] * EVALUATIONS])
    monkeypatch.setattr(Loop, "_fixed_loss", lambda loop: next(losses))
    task = problem(base, exemplar_folder, "reversion", steps=60, stop_window=EVALUATIONS)
    invert_together([task], tmp_path)
    again = Loop(Task(task, build(task), Checkpoints(tmp_path, "invert-inside-reversion", identity(task))))
    assert (again.done, again.end) == (2 * EVALUATIONS, 2 * EVALUATIONS)


def test_its_window_and_share_are_the_methods_settings(base: Base, exemplar_folder: Path) -> None:
    rule = build(problem(base, exemplar_folder, "reversion", stop_window=30, stop_threshold=0.4)).early_stopping()
    assert rule == EarlyStopping(window=30, threshold=0.4)


@pytest.mark.parametrize("window", [None, 1000])
def test_without_a_window_or_with_a_long_one_every_step_is_taken(
    window: int | None, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    task = problem(base, exemplar_folder, "textual_inversion", steps=5, stop_window=window)
    invert_relation(task, tmp_path / "concept", tmp_path / "scratch")
    assert json.loads((tmp_path / "concept" / "concept.json").read_text())["steps"] == 5
