"""Inversions that SIGKILL ends in their third step: `python -m tests.dying BASE EXEMPLARS SCRATCH NAME ...`.

The inversion of each name dies twice, in a process of its own; how they ended is printed as JSON. They are forks of
this process, which has imported everything and computed nothing: a fork of one whose threads have computed would hang.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import peft.tuners.lora  # noqa: F401 - with these, what every fork would import for itself
import torch._dynamo  # noqa: F401
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

from relinv.diffusion.bases import load_base
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.inversion import identity, learn
from relinv.learning.problem import Problem, Task
from tests.conftest import tiny_settings
from tests.inverting import build, problem


def eager_checkpoints(task: Problem, scratch: Path) -> Checkpoints:
    """Return checkpoints that are saved after each step."""
    return Checkpoints(scratch, "killed", identity(task), interval=0.0)


def learn_and_die(base: Path, exemplars: Path, name: str, scratch: Path) -> None:
    """Learn until the third step of this process, and die there."""
    task = problem(load_base(tiny_settings(base)), exemplars, name)
    method = build(task)
    taken: list[int] = []
    update = method.after_step

    def step_or_die() -> None:
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        taken.append(1)
        update()

    method.after_step = step_or_die  # type: ignore[method-assign]
    learn(Task(task, method, eager_checkpoints(task, scratch)), scratch / "concept")


def end_of_fork(base: Path, exemplars: Path, name: str, scratch: Path) -> int:
    """Return how a fork that learns ended: its exit code, or minus the signal that ended it."""
    process = os.fork()
    if not process:
        try:
            learn_and_die(base, exemplars, name, scratch / name)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(base: str, exemplars: str, scratch: str, *names: str) -> None:
    """Let the inversion of each name die twice."""
    places = Path(base), Path(exemplars)
    print(json.dumps({name: [end_of_fork(*places, name, Path(scratch)) for _ in range(2)] for name in names}))


if __name__ == "__main__":
    main(*sys.argv[1:])
