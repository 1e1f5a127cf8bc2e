"""What an inversion method is: the parts that the one training loop uses, each with a neutral default.

A method is one file in relinv/methods, found by its name. Anything it changes in the base beyond one token's row is an
adapter (relinv/diffusion/adapter.py), which image generation applies without knowing the method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
from PIL import Image

from relinv.diffusion.adapter import in_place
from relinv.diffusion.conditioning import prompt_at
from relinv.exemplars import load_image, load_mask
from relinv.learning.losses import LossTerm, denoising
from relinv.learning.timesteps import importance
from relinv.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from relinv.diffusion.adapter import ConceptAdapter
    from relinv.diffusion.bases import Base
    from relinv.exemplars import Exemplar, ExemplarSet
    from relinv.learning.early_stopping import EarlyStopping


@dataclass(frozen=True)
class TrainingPicture:
    """One training picture: an exemplar, a variant of one, or a prior picture, which preserves what the base knew."""

    image: Image.Image  # RGB, of the base's resolution
    templates: Sequence[str]  # captions with one `{}` for the token; those of a prior picture have none
    mask: torch.Tensor | None = None  # where the loss counts, (h, w) of the latents in [0, 1]; None: everywhere
    prior: bool = False  # whether it is one of the base's own pictures (DreamBooth's prior preservation)


@dataclass(frozen=True)
class LossInputs:
    """What a method computes its losses from in one training step; all tensors are on the base's device."""

    prompts: list[str]  # one per sample
    timesteps: torch.Tensor  # (batch,)
    prediction: torch.Tensor  # the UNet's output, (batch, channels, height, width)
    target: torch.Tensor  # what the output should be, of the same shape
    generator: torch.Generator  # on the CPU, for the method's own random numbers: a function of seed and step
    masks: torch.Tensor  # where the loss counts, (batch, 1, height, width) in [0, 1]


class InversionMethod:
    """How a relation is learned from its exemplars. Each part below has a neutral default, which a method may override.

    `base` is the frozen model, `words` the relation's plain words, `settings` the method's section of params.yaml,
    `exemplars` what it learns from. The loop runs `steps` steps of `batch_size` exemplars; a method with `steps = 0`
    learns nothing and only provides its prompts.
    """

    steps: int = 0
    batch_size: int = 0  # exemplars per step
    prior_batch_size: int = 0  # prior pictures per step, in addition
    max_grad_norm: float | None = None  # the gradients' norm, over all groups, is clipped to this before a step
    token: str | None = None  # the placeholder its prompts use
    adapters: Sequence[ConceptAdapter] = ()  # what it changes in the base beyond the token's row

    def __init__(self, base: Base, words: str, settings: Settings, exemplars: ExemplarSet) -> None:
        """Set up the initial state, which is not random: it follows from the arguments alone."""
        self.base = base
        self.words = words
        self.settings = settings
        self.exemplars = exemplars

    @classmethod
    def settings_for(cls, relation: str, settings: Settings) -> Settings:
        """Return what of the method's settings concerns a relation. Default: all.

        Raises UserError if they lack what it needs. `make reproduce` and studies ask for all relations before they run
        anything.
        """
        return settings

    # Trainable state

    def groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimiser, each {"params": [...], "lr": ..., "weight_decay": ...}.

        Gradients reach these tensors and no others. Called once.
        """
        return []

    def state(self) -> Mapping[str, torch.Tensor]:
        """Return by name every tensor that training changes: what `groups` holds, and buffers such as averages.

        All are on the base's device. Checkpoints save these and copy them back in place.
        """
        return {}

    # Training pictures

    def training_pictures(self, scratch: Path) -> list[TrainingPicture]:
        """Return the training pictures, such as exemplars, variants and prior pictures. Default: the exemplars.

        Exemplars come with their masks, if they have any. No adapter is applied to the base during this call. Pictures
        are encoded once, so a method must take any random numbers here from a seed of its own. Whatever takes long to
        make may be kept below `scratch`, under a name that identifies everything it depends on.
        """
        side = self.base.resolution
        return [
            TrainingPicture(load_image(exemplar.path, side), exemplar.templates, mask_of(self.base, exemplar))
            for exemplar in self.exemplars.exemplars
        ]

    # One training step. The order is: timestep, caption, conditioning, prediction, losses.

    def timestep_distribution(self, total: int) -> torch.Tensor:
        """Return the probabilities of the timesteps 0..total-1, (total,) float64. Default: uniform."""
        return importance(total, alpha=0.0)

    def caption(self, template: str, timestep: int) -> str:
        """Return the prompt for a caption template at a timestep, as the adapters rewrite it when drawing, too."""
        return prompt_at(self.adapters, template.replace("{}", self.token or self.words), timestep)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside the block the base knows the token and has the adapters; leaving it restores the base bit for bit.

        Training, previews and the loss terms run inside.
        """
        with self.known(), in_place(self.adapters):
            yield

    def known(self) -> AbstractContextManager[Any]:
        """Return the block in which the base knows the token's row. Default: the method has no row."""
        return nullcontext()

    def conditioning(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the encodings of token `ids`, (prompts, tokens) to (prompts, tokens, dim).

        A prompt that several samples of a batch share is encoded once, so anything that depends on the timestep must be
        in the caption: equal prompts always have equal conditionings. Drawing does not call this: what its adapters'
        `encode` makes of a prompt must be the same, as the contract test checks.
        """
        return self.base.encode(ids)

    def losses(self, inputs: LossInputs) -> dict[str, LossTerm]:
        """Return the loss terms of a step by the names they are logged under. Default: denoising alone.

        If a step takes several passes of the UNet, this is called once per pass. So one sample's contribution must not
        depend on another's prediction, nor on anything else that a pass computes, such as attention maps; the inputs'
        generator gives the same numbers in each call. The names are the same at every step; a weight may change. A term
        of the prompts' encodings makes them anew, by `conditioning`.
        """
        return {"denoise": LossTerm(1.0, denoising(inputs.prediction, inputs.target))}

    def early_stopping(self) -> EarlyStopping | None:
        """Return the rule that may end a training before its `steps`, or None. Default: None."""
        return None

    def after_step(self) -> None:
        """Update what the optimiser does not: averages, projections. Called after each of its steps.

        Do not read a tensor's value here, as `item` does: the CPU would wait for the GPU, and then that for it.
        """

    # The result

    @property
    def template(self) -> str:
        """Return the prompt of a scenario, with `{head}` and `{tail}` in place of its entities."""
        return f"{{head}} {self.token or self.words} {{tail}}"

    def embedding(self) -> torch.Tensor | None:
        """Return the learned row, (dim,) float32 on the CPU, or None if there is no single learned row."""
        return None


def mask_of(base: Base, exemplar: Exemplar) -> torch.Tensor | None:
    """Return an exemplar's mask at the size of its latents, (h, w), scaled to a maximum of 1, or None if it has none.

    An all-black mask has found nothing, so it gives None too. Raises UserError if the mask is unreadable.
    """
    import torch

    picture = load_mask(exemplar, base.latent_side)
    if picture is None:
        return None
    levels = torch.from_numpy(numpy.array(picture)).float()  # (h, w)
    return levels / levels.max() if levels.any() else None
