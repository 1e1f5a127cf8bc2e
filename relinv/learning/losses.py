"""The losses of inversion, each a function of tensors that returns a scalar tensor.

torch is imported when one is computed: methods, and with them the check of their parameters, start without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class Term(NamedTuple):
    """One term of a loss: the total is the sum of weight * value; the log holds the bare value."""

    weight: float
    value: torch.Tensor  # a scalar


def weighted_sum(terms: Mapping[str, Term]) -> torch.Tensor:
    """Return the loss that is minimised: the sum of weight * value over its terms."""
    import torch

    return torch.stack([term.weight * term.value for term in terms.values()]).sum()


def denoising(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the UNet's output, both (batch, channels, height, width).

    Ho et al. 2020, equation 14; the loss of Textual Inversion (Gal et al. 2022, equation 2).
    """
    from torch.nn.functional import mse_loss

    return mse_loss(prediction.float(), target.float())


def masked_denoising(prediction: torch.Tensor, target: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the mean over samples of the mean squared error where a sample's mask is 1.

    As Custom Diffusion (Kumari et al. 2023) trains on scaled pictures. Prediction and target are (batch, channels,
    height, width), `masks` (batch, 1, height, width). The mean is over channels too, so masks of 1 give `denoising`; a
    sample whose mask is 0 everywhere adds 0.
    """
    squares = (prediction.float() - target.float()).square().mean(1, keepdim=True)  # (batch, 1, height, width)
    areas = masks.sum(dim=(1, 2, 3)).clamp(min=1)  # (batch,)
    return ((squares * masks).sum(dim=(1, 2, 3)) / areas).mean()


def weighted_denoising(prediction: torch.Tensor, target: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the mean over (batch, channels, height, width) of the squared error times a soft mask.

    Perfusion's loss (Tewel et al. 2023): `masks` (batch, 1, height, width) in [0, 1] weigh the error once, not squared.
    """
    return ((prediction.float() - target.float()).square() * masks).mean()


def anchor(rows: torch.Tensor, word: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return Compositional Inversion's anchor loss (Zhang et al. 2024): learned rows, (..., dim), to a word's, (dim,).

    That is the mean squared difference of the embeddings of two prompts of `tokens` tokens, one with the placeholder
    and one with the word in its place, which differ there alone: ||row - word||^2 / (tokens * dim), averaged over the
    rows. Gradient for `rows`.
    """
    distances = (rows - word.detach().float()).square().sum(-1)  # (...)
    return distances.mean() / (tokens * len(word))


def steering(
    rows: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    present: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Return ReVersion's relation-steering loss (Huang et al. 2024), a multi-instance InfoNCE over token rows.

    For a caption with positives P and negatives N, similarity s the cosine and temperature g:
        -log( sum_P exp(s(row, p) / g)  /  sum_{P u N} exp(s(row, .) / g) )
    averaged over the captions. `rows` is one row for all captions, (dim,), or each one's own, (captions, dim);
    `positives` (captions, n_p, dim), `negatives` (captions, n_n, dim) with `present` (captions, n_n) false for padding.
    A caption without negatives adds 0. Gradient for `rows` alone.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    rows = rows[..., None, :]  # (1, dim) or (captions, 1, dim)
    attract = cosine_similarity(positives.detach(), rows, dim=-1) / temperature  # (captions, n_p)
    repel = cosine_similarity(negatives.detach(), rows, dim=-1) / temperature  # (captions, n_n)
    repel = repel.masked_fill(~present, -torch.inf)
    everything = torch.cat([attract, repel], dim=-1)
    return (everything.logsumexp(-1) - attract.logsumexp(-1)).mean()
