"""Running a step's samples through the UNet, in as many passes as the memory requires."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from relinv.diffusion.bases import Base

Terms = TypeVar("Terms")


def predict(base: Base, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
    """Return the UNet's prediction for all samples, (batch, channels, height, width)."""
    return torch.cat([base.unet(*inputs).sample for inputs in _passes(base, noisy, timesteps, conditioning)])


def accumulate_gradients(
    base: Base,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: torch.Tensor,
    target: torch.Tensor,
    loss: Callable[[torch.Tensor], tuple[torch.Tensor, Terms]],
) -> Terms:
    """Accumulate gradients of `loss` in what is learned; return the terms it has for the predictions of all samples.

    `loss` turns the UNet's predictions into a scalar and terms to be logged. Predictions and `target` are (batch,
    channels, height, width), `conditioning` is (batch, tokens, dim). Each pass's activations are freed before the next
    pass, so a step needs the memory of one. `loss` is evaluated once per pass, the last time with all predictions;
    until then the target stands in for each missing one. The gradients equal those of a single pass if no sample's
    share of the loss depends on another's prediction (see InversionMethod.losses).
    """
    encodings = conditioning.detach().requires_grad_(conditioning.requires_grad)  # (batch, tokens, dim)
    passes = list(_passes(base, noisy, timesteps, encodings, target))
    answers = [each[-1] for each in passes]  # targets at first, (samples of the pass, channels, height, width) each
    for index, (*inputs, _) in enumerate(passes):
        answer = base.unet(*inputs).sample
        total, terms = loss(torch.cat([*answers[:index], answer, *answers[index + 1 :]]))
        if index < len(passes) - 1:
            answer.backward(*torch.autograd.grad(total, answer))
        else:
            total.backward()  # includes the loss terms that do not depend on predictions
        answers[index] = answer.detach()
    if encodings.grad is not None:
        conditioning.backward(encodings.grad)
    return terms


def _passes(base: Base, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Return each pass's part of `tensors`, which have one row per sample."""
    size = base.settings.samples_per_pass or len(tensors[0])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)
