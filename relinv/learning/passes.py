"""A step's samples through the UNet, in as many passes as the memory asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from relinv.diffusion.bases import Base


def predict(base: Base, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
    """Return the UNet's answer to all samples, (batches, channels, height, width)."""
    return torch.cat([base.unet(*inputs).sample for inputs in _passes(base, noisy, timesteps, conditioning)])


def accumulate_gradients(
    base: Base,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: torch.Tensor,
    target: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Add to what is learned the gradients of `loss`, a scalar of the UNet's answer to all samples.

    Answer and `target` are (batches, channels, height, width), `conditioning` (batches, tokens, dim). The activations
    of a pass are freed before the next begins, so a step needs the memory of one. `loss` is asked once for each pass,
    the last time with every answer; until then a target stands where an answer is still to come. So the gradients are
    those of one pass for all, where no sample's share in the loss depends on another's answer (InversionMethod.losses).
    """
    encodings = conditioning.detach().requires_grad_(conditioning.requires_grad)  # (batches, tokens, dim)
    passes = list(_passes(base, noisy, timesteps, encodings, target))
    answers = [each[-1] for each in passes]  # (pass, channels, height, width) each
    for index, (*inputs, _) in enumerate(passes):
        answer = base.unet(*inputs).sample
        total = loss(torch.cat([*answers[:index], answer, *answers[index + 1 :]]))
        if index < len(passes) - 1:
            answer.backward(*torch.autograd.grad(total, answer))
        else:
            total.backward()  # with what the loss has beside the answers
        answers[index] = answer.detach()
    if encodings.grad is not None:
        conditioning.backward(encodings.grad)


def _passes(base: Base, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Return each pass's part of tensors that have one row for each sample."""
    size = base.settings.samples_per_pass or len(tensors[0])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)
