"""An inversion that SIGKILL ends in its third step: `python -m tests.dying BASE EXEMPLARS METHOD SCRATCH`.

A process of its own, started afresh: a fork of one whose threads have computed would hang.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from relinv.diffusion.bases import load_base
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.inversion import Problem, identity, learn
from relinv.plugins import find_plugin
from tests.conftest import tiny_settings
from tests.inverting import problem


def eager_checkpoints(task: Problem, scratch: Path) -> Checkpoints:
    """Return checkpoints that are saved after each step."""
    return Checkpoints(scratch, "killed", identity(task), interval=0.0)


def main(base: str, exemplars: str, name: str, scratch: str) -> None:
    """Learn until the third step of this process, and die there."""
    task = problem(load_base(tiny_settings(Path(base))), Path(exemplars), name)
    method = find_plugin("relinv.methods", name).Method(task.base, task.words, task.settings)
    taken: list[int] = []
    update = method.after_step

    def step_or_die() -> None:
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        taken.append(1)
        update()

    method.after_step = step_or_die  # type: ignore[method-assign]
    learn(task, method, Path(scratch) / "concept", eager_checkpoints(task, Path(scratch)))


if __name__ == "__main__":
    main(*sys.argv[1:])
