"""The batch of each training step: a function of seed and step number alone.

Its pictures, timesteps, captions and noise come from generators made for that step (relinv/diffusion/randomness.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from relinv.devices import to_device
from relinv.diffusion.randomness import generator
from relinv.learning.exemplar_latents import ExemplarLatents, encode_pictures
from relinv.learning.method import InversionMethod, TrainingPicture
from relinv.learning.timesteps import require_probabilities, sample_timesteps


@dataclass(frozen=True)
class Batch:
    """A batch ready for the UNet, and the prediction it should make; all tensors are on the base's device."""

    prompts: list[str]
    timesteps: torch.Tensor  # (batch,)
    noisy: torch.Tensor  # (batch, channels, height, width), in the UNet's precision
    target: torch.Tensor  # of the same shape: the noise or the velocity
    conditioning: torch.Tensor  # (batch, tokens, dim)
    masks: torch.Tensor  # (batch, 1, height, width)


class Batches:
    """The batches of one training; ask for them inside `method.attached()`, where the method's token is known.

    It keeps only latents, captions and masks, not the pictures, which would take 0.8 GB for 1,000 of 512 px.
    """

    def __init__(self, method: InversionMethod, pictures: Sequence[TrainingPicture], seed: int) -> None:
        self.method, self.base, self.seed = method, method.base, seed
        self.templates = [picture.templates for picture in pictures]
        self.own = [index for index, picture in enumerate(pictures) if not picture.prior]
        self.prior = [index for index, picture in enumerate(pictures) if picture.prior]
        self.latents: ExemplarLatents = encode_pictures(self.base, [picture.image for picture in pictures])
        self.masks = self._stacked([picture.mask for picture in pictures])
        self.probabilities = method.timestep_distribution(self.base.scheduler.config.num_train_timesteps)
        require_probabilities(self.probabilities, self.base.scheduler.config.num_train_timesteps)
        self.ids: dict[str, torch.Tensor] = {}  # token ids of each prompt, computed once

    def check_captions(self) -> None:
        """Raise UserError for a caption that is too long, as one with a prefix for its picture's scale may be."""
        for template in dict.fromkeys(template for templates in self.templates for template in templates):
            self._ids_of(self.method.caption(template, 0))

    def of_step(self, step: int) -> Batch:
        """Return a step's batch: some of the pictures, each with freshly sampled latents."""
        pictures = self._visited(step)
        clean = self.latents.sample(pictures, generator(self.seed, "latents", step))  # (batch, channels, h, w)
        return self._batch(pictures, clean, step)

    def fixed(self) -> Batch:
        """Return a batch, always the same: a picture of each exemplar, its mean latents, fixed timesteps and noise."""
        once = self.own[:: len(self.own) // len(self.method.exemplars.exemplars)]  # of each exemplar's scale variants
        return self._batch(once, self.latents.mean[once], 0, "fixed ")

    def _batch(self, pictures: list[int], clean: torch.Tensor, step: int, purpose: str = "") -> Batch:
        """Return a batch of pictures with `clean` latents; timesteps come first, since captions may depend on them."""
        source = partial(generator, self.seed, step=step)
        timesteps = sample_timesteps(self.probabilities, len(pictures), source(f"{purpose}timesteps"))
        prompts = self._captions(pictures, timesteps, source(f"{purpose}captions"))
        timesteps = to_device(timesteps, clean.device)
        noisy, target = self._noised(clean, timesteps, source(f"{purpose}noise"))
        conditioning = self._conditioning(prompts)
        masks = self.masks[to_device(torch.tensor(pictures), clean.device)]
        return Batch(prompts, timesteps, noisy, target, conditioning, masks)

    def _visited(self, step: int) -> list[int]:
        """Return the indices of a step's pictures: exemplars first, then prior pictures."""
        own = visits(len(self.own), self.method.batch_size, step, self.seed)
        prior = visits(len(self.prior), self.method.prior_batch_size, step, self.seed, "prior pictures")
        return [*(self.own[index] for index in own), *(self.prior[index] for index in prior)]

    def _captions(self, pictures: Sequence[int], timesteps: torch.Tensor, source: torch.Generator) -> list[str]:
        """Return one prompt per sample, from a random template of its picture."""
        prompts = []
        for picture, timestep in zip(pictures, timesteps.tolist(), strict=True):
            templates = self.templates[picture]
            template = templates[int(torch.randint(len(templates), (1,), generator=source))]
            prompts.append(self.method.caption(template, timestep))
        return prompts

    def _noised(
        self, clean: torch.Tensor, timesteps: torch.Tensor, source: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents with noise from `source` at `timesteps`, (batch,), and the target: the noise or velocity.

        All are (batch, channels, height, width), as `clean` is.
        """
        scheduler = self.base.scheduler
        noise = to_device(torch.randn(clean.shape, generator=source), clean.device)
        noisy = scheduler.add_noise(clean, noise, timesteps).to(self.base.dtype)
        if scheduler.config.prediction_type == "v_prediction":
            return noisy, scheduler.get_velocity(clean, noise, timesteps)
        return noisy, noise

    def _conditioning(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the prompts' encodings, (batch, tokens, dim); each distinct prompt is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        encodings = self.method.conditioning(torch.stack([self._ids_of(prompt) for prompt in distinct]))
        index = torch.tensor([distinct.index(prompt) for prompt in prompts])
        return encodings[to_device(index, encodings.device)]

    def _ids_of(self, prompt: str) -> torch.Tensor:
        """Return a prompt's token ids, (tokens,), tokenised once. Raises UserError if it is too long."""
        if prompt not in self.ids:
            self.ids[prompt] = self.base.tokenize([prompt])[0]
        return self.ids[prompt]

    def _stacked(self, masks: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Return the pictures' masks, (pictures, 1, height, width), on the base's device; 1 where one has none."""
        everywhere = torch.ones(self.latents.mean.shape[-2:])
        return torch.stack([everywhere if mask is None else mask for mask in masks])[:, None].to(self.base.device)


def visits(total: int, count: int, step: int, seed: int, purpose: str = "pictures") -> list[int]:
    """Return the indices, below `total`, of a step's `count` pictures: a function of seed, purpose and step alone.

    Over all steps, the pictures are visited in one shuffled pass after another.
    """
    chosen: list[int] = []
    for position in range(step * count, (step + 1) * count):
        epoch, place = divmod(position, total)
        order = torch.randperm(total, generator=generator(seed, purpose, epoch))
        chosen.append(int(order[place]))
    return chosen
