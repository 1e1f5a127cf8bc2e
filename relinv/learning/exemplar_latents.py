"""Training pictures as latents, sampled anew for each batch, from moments that are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from PIL import Image

from relinv.devices import to_device
from relinv.diffusion.bases import Base


@dataclass(frozen=True)
class ExemplarLatents:
    """The mean and standard deviation of each picture's latents, (pictures, channels, h, w), scaled for the UNet.

    Pictures are neither flipped nor cropped at random, so the moments are exact for every batch.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def sample(self, pictures: list[int], generator: torch.Generator) -> torch.Tensor:
        """Return a fresh sample for each of `pictures`, (batch, channels, h, w); `generator` is on the CPU."""
        index = to_device(torch.tensor(pictures), self.mean.device)
        noise = to_device(torch.randn(len(pictures), *self.mean.shape[1:], generator=generator), self.mean.device)
        return self.mean[index] + self.deviation[index] * noise


def encode_pictures(base: Base, pictures: Sequence[Image.Image]) -> ExemplarLatents:
    """Return the moments of RGB pictures of the base's resolution, float32 on the base's device."""
    with torch.inference_mode():
        moments = [_encode(base, picture) for picture in pictures]
    means, deviations = zip(*moments, strict=True)
    return ExemplarLatents(torch.cat(means), torch.cat(deviations))


def _encode(base: Base, picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and standard deviation of one picture's latents, each (1, channels, h, w)."""
    levels = torch.from_numpy(numpy.array(picture))  # (side, side, 3)
    pixels = (levels.permute(2, 0, 1)[None].float() / 127.5 - 1).to(base.device, base.dtype)
    distribution = base.vae.encode(pixels).latent_dist
    scale = base.vae.config.scaling_factor
    return distribution.mean.float() * scale, distribution.std.float() * scale
