"""Inversion methods: one file each, found by its name; all are learned by the one loop of relinv/learning/training.py.

A file `relinv/methods/NAME.py` holds two classes: `Settings`, the section `invert.NAME` of params.yaml, and
`Method`, an `InversionMethod`. No list names them. Methods never import each other: what two of them share is
a module of its own beside this package (relinv/learning/token_row.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from relinv.settings import Settings

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base
    from relinv.learning.early_stopping import EarlyStopping


class Term(NamedTuple):
    """One term of a loss: the total is the sum of weight * value; the log holds the bare value."""

    weight: float
    value: torch.Tensor  # a scalar


@dataclass(frozen=True)
class Visit:
    """What one training step shows a method; all tensors are on the base's device."""

    step: int
    prompts: list[str]  # one a sample
    timesteps: torch.Tensor  # (batch,)
    prediction: torch.Tensor  # the UNet's output, (batch, channels, height, width)
    target: torch.Tensor  # what it should have been, of the same shape
    generator: torch.Generator  # on the CPU, for the method's own draws: a function of seed and step


class InversionMethod:
    """How a relation is learned from its exemplars. Each part below has a neutral default; a method overrides its own.

    `base` is the frozen model, `words` the relation's plain words, `settings` the method's own section.
    `steps` and `batch_size` are what the loop runs; a method with `steps = 0` learns nothing and only names
    its prompts.
    """

    steps: int = 0
    batch_size: int = 0
    token: str | None = None  # the placeholder its prompts use

    def __init__(self, base: Base, words: str, settings: Settings) -> None:
        """Set up the initial state. Draws nothing at random: the state follows from the arguments alone."""
        self.base = base
        self.words = words
        self.settings = settings

    # Trainable state

    def groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimiser, each {"params": [...], "lr": ..., "weight_decay": ...}.

        Gradients reach these tensors and no others.
        """
        return []

    def state(self) -> Mapping[str, torch.Tensor]:
        """Return by name every tensor that training changes: what `groups` holds, and buffers such as averages.

        Checkpoints save these and copy them back in place.
        """
        return {}

    # What one training step shows the model. The order is: timestep, caption, conditioning, prediction, losses.

    def timestep_law(self, total: int) -> torch.Tensor:
        """Return the probabilities by which the timesteps 0..total-1 are drawn, (total,) float64. Default: uniform."""
        from relinv.learning.timesteps import uniform

        return uniform(total)

    def caption(self, template: str, timestep: int, generator: torch.Generator) -> str:
        """Return the prompt for a caption template with one `{}`. It comes after the timestep and may depend on it."""
        return template.replace("{}", self.token or self.words)

    def attached(self) -> AbstractContextManager[Any]:
        """Return the block in which the base is changed: token hooks, attention processors, adapters.

        Leaving it restores the base bit by bit. Training, previews and the loss terms run inside.
        """
        return nullcontext()

    def conditioning(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the encodings of token `ids`, (prompts, tokens) to (prompts, tokens, dim).

        A prompt that several samples of a batch share is encoded once; what depends on the timestep goes into
        the caption, so that equal prompts always have equal conditionings.
        """
        return self.base.encode(ids)

    def losses(self, visit: Visit) -> dict[str, Term]:
        """Return the loss terms of a step by the names they are logged under. Default: denoising alone."""
        from relinv.learning.losses import denoising

        return {"denoise": Term(1.0, denoising(visit.prediction, visit.target))}

    def early_stopping(self) -> EarlyStopping | None:
        """Return what may end a training before its `steps`, or None. Default: None."""
        return None

    def after_step(self) -> None:
        """Update what the optimiser does not: averages, projections. Called after each of its steps."""

    # What remains

    @property
    def template(self) -> str:
        """Return the prompt of a scenario, with `{head}` and `{tail}` in place of its entities."""
        return f"{{head}} {self.token or self.words} {{tail}}"

    def embedding(self) -> torch.Tensor | None:
        """Return the learned row, (dim,) float32 on the CPU, or None where the plain words are all."""
        return None
