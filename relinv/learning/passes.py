"""The UNet's answer in training, in as many passes as the memory asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from relinv.diffusion.bases import Base


def predict(base: Base, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
    """Return the UNet's answer to all samples, (batches, channels, height, width), in passes of `samples_per_pass`.

    Where that takes several, a pass keeps nothing but its inputs and is computed a second time when the gradient
    arrives (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016): a step needs the memory of one pass.
    """

    def answer(*inputs: torch.Tensor) -> torch.Tensor:
        """Return the UNet's answer to one pass."""
        return base.unet(*inputs).sample

    size = base.settings.samples_per_pass or len(noisy)
    if size >= len(noisy):
        return answer(noisy, timesteps, conditioning)
    passes = zip(noisy.split(size), timesteps.split(size), conditioning.split(size), strict=True)
    return torch.cat([checkpoint(answer, *inputs, use_reentrant=False) for inputs in passes])
