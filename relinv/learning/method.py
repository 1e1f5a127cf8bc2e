"""What an inversion method is: the parts that the one training loop asks of it, each with a neutral default.

A method is one file of relinv/methods, found by its name. What it changes in the base beyond one token's row is an
adapter (relinv/diffusion/adapter.py), which drawing puts in place without knowing the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relinv.diffusion.adapter import in_place
from relinv.exemplars import load_image, load_mask
from relinv.learning.losses import Term, denoising
from relinv.learning.timesteps import importance
from relinv.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL import Image

    from relinv.diffusion.adapter import ConceptAdapter
    from relinv.diffusion.bases import Base
    from relinv.exemplars import Exemplar, ExemplarSet
    from relinv.learning.early_stopping import EarlyStopping


@dataclass(frozen=True)
class Shown:
    """One picture as training shows it: an exemplar, a variant of one, or a picture that keeps what the base knew."""

    image: Image.Image  # RGB, of the base's resolution
    templates: Sequence[str]  # captions with one `{}`
    mask: torch.Tensor | None = None  # where the loss counts, (h, w) of the latents in [0, 1]; None: everywhere
    prior: bool = False  # whether it is one of the base's own pictures (DreamBooth's prior preservation)


@dataclass(frozen=True)
class Visit:
    """What one training step shows a method; all tensors are on the base's device."""

    prompts: list[str]  # one a sample
    timesteps: torch.Tensor  # (batch,)
    prediction: torch.Tensor  # the UNet's output, (batch, channels, height, width)
    target: torch.Tensor  # what it should have been, of the same shape
    generator: torch.Generator  # on the CPU, for the method's own draws: a function of seed and step
    masks: torch.Tensor  # where the loss counts, (batch, 1, height, width) in [0, 1]


class InversionMethod:
    """How a relation is learned from its exemplars. Each part below has a neutral default; a method overrides its own.

    `base` is the frozen model, `words` the relation's plain words, `settings` the method's own section.
    `steps` and `batch_size` are what the loop runs; a method with `steps = 0` learns nothing and only names
    its prompts.
    """

    steps: int = 0
    batch_size: int = 0  # samples of the exemplars in a step
    prior_batch_size: int = 0  # samples of the base's own pictures, beside them
    max_grad_norm: float | None = None  # what a longer gradient, over all groups, is shortened to before a step
    token: str | None = None  # the placeholder its prompts use
    adapters: Sequence[ConceptAdapter] = ()  # what it changes in the base beyond the token's row

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

    # What training shows the model

    def shown(self, exemplars: ExemplarSet, scratch: Path) -> list[Shown]:
        """Return the pictures to be learned from: variants with masks, pictures of the base. Default: the exemplars.

        They come with their masks, where masks are beside them. The base is as it was, no adapter in place. They are
        encoded once, so whatever a method draws at random here it draws from a seed of its own. What is long in the
        making may be kept below `scratch`, under a name that tells all it follows from.
        """
        side = self.base.resolution
        return [
            Shown(load_image(exemplar.path, side), exemplar.templates, mask_of(self.base, exemplar))
            for exemplar in exemplars.exemplars
        ]

    # One training step. The order is: timestep, caption, conditioning, prediction, losses.

    def timestep_law(self, total: int) -> torch.Tensor:
        """Return the probabilities by which the timesteps 0..total-1 are drawn, (total,) float64. Default: uniform."""
        return importance(total, alpha=0.0)

    def caption(self, template: str, timestep: int, generator: torch.Generator) -> str:
        """Return the prompt for a caption template with one `{}`. It comes after the timestep and may depend on it."""
        return template.replace("{}", self.token or self.words)

    def attached(self) -> AbstractContextManager[Any]:
        """Return the block in which the base is changed: token hooks, adapters. Default: the adapters'.

        Leaving it restores the base bit by bit. Training, previews and the loss terms run inside.
        """
        return in_place(self.adapters)

    def conditioning(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the encodings of token `ids`, (prompts, tokens) to (prompts, tokens, dim).

        A prompt that several samples of a batch share is encoded once; what depends on the timestep goes into
        the caption, so that equal prompts always have equal conditionings.
        """
        return self.base.encode(ids)

    def losses(self, visit: Visit) -> dict[str, Term]:
        """Return the loss terms of a step by the names they are logged under. Default: denoising alone.

        A base in little memory asks once for each of several passes, so what a sample's prediction adds must not
        depend on another's; what is drawn from the visit's generator is the same each time.
        """
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


def mask_of(base: Base, exemplar: Exemplar) -> torch.Tensor | None:
    """Return an exemplar's mask, (h, w) of the base's latents with 1 its maximum, or None where it has none.

    A mask that is black all over has found nothing, so it says nothing: None. Raises UserError if it is unreadable.
    """
    import numpy
    import torch

    picture = load_mask(exemplar, base.latent_side)
    if picture is None:
        return None
    levels = torch.from_numpy(numpy.array(picture)).float()  # (h, w)
    return levels / levels.max() if levels.any() else None
