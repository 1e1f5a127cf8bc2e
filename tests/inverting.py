"""Small inversions for tests: every method with its section of params.yaml, cut down to a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from relinv.diffusion.bases import Base
from relinv.exemplars import read_exemplars
from relinv.files import sha256_file
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.method import InversionMethod, LossInputs
from relinv.learning.problem import Problem, Task
from relinv.learning.training import Loop
from relinv.params import load_params
from relinv.plugins import find_plugin, plugin_names
from relinv.settings import PreviewSettings

METHODS = plugin_names("relinv.methods")
LEARNING = [name for name in METHODS if "steps" in find_plugin("relinv.methods", name).Settings.model_fields]
# What a setting makes another kind of state of, called METHOD+FORM where a method's name is asked for.
FORMS = {
    "custom_diffusion+rows": {"resolutions": 10},
    "dreambooth+full": {"weights": "full"},
    "dreambooth+rows": {"resolutions": 10},
    "reversion+rows": {"resolutions": 10},
}
# anchor_word is not the initializer_token: a token that starts at its anchor has that loss's minimum behind it already.
SMALL = {"steps": 6, "batch_size": 2, "learning_rate": 0.03, "anchor_word": "inside", "prior_images": 2,
         "prior_steps": 2, "scale_variants": 2}  # fmt: skip
PREVIEW = PreviewSettings(count=2, prompts=["cat <r> box", "dog <R> cup"], seed=0)


def problem(base: Base, exemplar_folder: Path, name: str, seed: int = 0, **changes: Any) -> Problem:
    """Return a short inversion of `inside` by the method `name`, or a form of it; `changes` are to its parameters."""
    method, changes = name.partition("+")[0], FORMS.get(name, {}) | changes
    kind = find_plugin("relinv.methods", method).Settings
    values = load_params().section(f"invert.{method}", dict[str, Any])
    if method == "imported":
        values = {"tokens": {"inside": token_elsewhere(base, exemplar_folder.parent)}}
    small = {name: value for name, value in (SMALL | changes).items() if name in kind.model_fields}
    settings = kind(**(values | small))
    return Problem(base, read_exemplars(exemplar_folder), "inside", method, settings, seed, PREVIEW)


def token_elsewhere(base: Base, folder: Path) -> dict[str, str]:
    """Write a token that another program could have learned for the base; return its file and what DVC watches."""
    file = folder / f"elsewhere_{base.dim}.safetensors"
    save_file({"<R>": torch.randn(base.dim, generator=torch.Generator().manual_seed(0))}, file)
    return {"file": str(file), "sha256": sha256_file(file)}


def build(task: Problem) -> InversionMethod:
    """Return the method of a problem, with nothing learned yet."""
    return find_plugin("relinv.methods", task.method).Method(task.base, task.words, task.settings, task.exemplars)


def no_checkpoints(scratch: Path) -> Checkpoints:
    """Return checkpoints that are never saved."""
    return Checkpoints(scratch, "unused", {}, interval=1e9)


def training(task: Problem, scratch: Path) -> Task:
    """Return the training of a problem, of which no checkpoint is saved."""
    return Task(task, build(task), no_checkpoints(scratch))


def looping(task: Problem, scratch: Path) -> Loop:
    """Return the loop of a problem, before its first step."""
    begun = training(task, scratch)
    return Loop(begun, begun.method.attached)


def inputs(prompts: list[str], timesteps: list[int] | None = None) -> LossInputs:
    """Return inputs with no error of the UNet, at timestep 0 if none are given."""
    zeros = torch.zeros(len(prompts), 4, 16, 16)
    at, masks = torch.tensor(timesteps or [0] * len(prompts)), torch.ones(len(prompts), 1, 1, 1)
    return LossInputs(prompts, at, zeros, zeros, torch.Generator().manual_seed(0), masks)


def stopping(step: Callable[..., None], after: int) -> Callable[..., None]:
    """Return `step`, which a KeyboardInterrupt ends in place of its call `after` others."""
    taken: list[int] = []

    def limited(*arguments: Any) -> None:
        if len(taken) == after:
            raise KeyboardInterrupt
        taken.append(1)
        step(*arguments)

    return limited
