"""The losses of inversion, each a function of tensors that returns a scalar tensor.

torch is imported only when a loss is computed, so that methods, and checks of their parameters, load without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class LossTerm(NamedTuple):
    """One term of a loss: the total is the sum of weight * value; the log holds the bare value."""

    weight: float
    value: torch.Tensor  # a scalar


def weighted_sum(terms: Mapping[str, LossTerm]) -> torch.Tensor:
    """Return the loss that is minimised: the sum of weight * value over its terms.

    Raises ValueError, a method's mistake, for a value that is no scalar tensor.
    """
    import torch

    for name, term in terms.items():
        if not isinstance(term.value, torch.Tensor) or term.value.dim():
            is_tensor = isinstance(term.value, torch.Tensor)
            found = f"one of shape {tuple(term.value.shape)}" if is_tensor else type(term.value).__name__
            raise ValueError(f"The loss term '{name}' must be a scalar tensor, not {found}")
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()


def denoising(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the UNet's prediction; both tensors are (batch, channels, height, width).

    Ho et al. 2020, equation 14; the loss of Textual Inversion (Gal et al. 2022, equation 2).
    """
    from torch.nn.functional import mse_loss

    return mse_loss(prediction.float(), target.float())


def masked_denoising(prediction: torch.Tensor, target: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return each sample's mean squared error where its mask is 1, averaged over the samples.

    Custom Diffusion's loss for scaled pictures (Kumari et al. 2023). Prediction and target are (batch, channels,
    height, width), `masks` (batch, 1, height, width). The mean is over channels too, so masks of 1 give `denoising`; a
    sample whose mask is 0 everywhere adds 0.
    """
    squares = (prediction.float() - target.float()).square().mean(1, keepdim=True)  # (batch, 1, height, width)
    areas = masks.sum(dim=(1, 2, 3)).clamp(min=1)  # (batch,)
    return ((squares * masks).sum(dim=(1, 2, 3)) / areas).mean()


def weighted_denoising(prediction: torch.Tensor, target: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the mean over (batch, channels, height, width) of the squared error times a soft mask.

    Perfusion's loss (Tewel et al. 2023): `masks` (batch, 1, height, width) in [0, 1] are not themselves squared.
    """
    return ((prediction.float() - target.float()).square() * masks).mean()


def anchor(rows: torch.Tensor, word: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return Compositional Inversion's anchor loss (Zhang et al. 2024) of `rows`, (..., dim), to a word's, (dim,).

    It is the mean squared difference between the embeddings of two prompts of `tokens` tokens, which differ only in
    having the placeholder or the word at one position: ||row - word||^2 / (tokens * dim), averaged over the rows. Only
    `rows` get a gradient.
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

    For a caption with positives P and negatives N, cosine similarity s and temperature g:
        -log( sum_P exp(s(row, p) / g)  /  sum_{P u N} exp(s(row, .) / g) )
    averaged over the captions. `rows` is one row for all captions, (dim,), or one per caption, (captions, dim);
    `positives` (captions, n_p, dim), `negatives` (captions, n_n, dim) with `present` (captions, n_n) false for padding.
    A caption without negatives adds 0. Only `rows` get a gradient.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    rows = rows[..., None, :]  # (1, dim) or (captions, 1, dim)
    attract = cosine_similarity(positives.detach(), rows, dim=-1) / temperature  # (captions, n_p)
    repel = cosine_similarity(negatives.detach(), rows, dim=-1) / temperature  # (captions, n_n)
    repel = repel.masked_fill(~present, -torch.inf)
    everything = torch.cat([attract, repel], dim=-1)  # (captions, n_p + n_n)
    return (everything.logsumexp(-1) - attract.logsumexp(-1)).mean()
