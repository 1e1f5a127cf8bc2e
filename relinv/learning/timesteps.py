"""The distribution of training timesteps, uniform or weighted towards the noisy end, and sampling from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def importance(total: int, alpha: float) -> torch.Tensor:
    """Return ReVersion's relation-focal probabilities, (total,) float64; alpha in [0, 1], 0 being uniform.

    p(t) is proportional to 1 - alpha cos(pi t / T) (Huang et al. 2024, section 4.3): relations are decided at
    the noisy end, so more of the training goes there.
    """
    import torch

    steps = torch.arange(total, dtype=torch.float64)
    density = 1 - alpha * torch.cos(torch.pi * steps / total)
    return density / density.sum()


def require_probabilities(probabilities: torch.Tensor, total: int) -> None:
    """Raise ValueError, a method's mistake, unless these are the probabilities of `total` timesteps.

    Timesteps would be drawn by anything else too, and training would go on with the wrong ones.
    """
    valid = probabilities.shape == (total,) and (probabilities >= 0).all()  # NaN fails too
    if not valid or abs(float(probabilities.sum()) - 1) > 1e-6:
        raise ValueError(f"A method's timestep_distribution must be {total} numbers that sum to 1, not {probabilities}")


def sample_timesteps(probabilities: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return `count` timesteps, (count,) int64, each distributed by `probabilities`, (total,).

    Sampling is stratified: one timestep from each of `count` equal slices of probability, in random order. Each still
    follows `probabilities`, but a batch always covers the whole range, which lowers its gradient's variance.
    """
    import torch

    slices = torch.randperm(count, generator=generator).double()
    levels = (slices + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    timesteps = torch.searchsorted(probabilities.cumsum(0), levels, right=True)
    return timesteps.clamp(max=len(probabilities) - 1)  # the last sum may fall short of 1 by rounding
