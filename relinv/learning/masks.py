"""Soft masks: where in a picture the loss counts, from files beside the exemplars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relinv.exemplars import load_mask

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base
    from relinv.exemplars import Exemplar


def mask_of(base: Base, exemplar: Exemplar) -> torch.Tensor | None:
    """Return an exemplar's mask, (h, w) of the base's latents with 1 its maximum, or None where it has none.

    A mask that is black all over has found nothing, so it says nothing: None. UserError where it cannot be read.
    """
    import numpy
    import torch

    picture = load_mask(exemplar, base.latent_side)
    if picture is None:
        return None
    levels = torch.from_numpy(numpy.array(picture)).float()  # (h, w)
    return levels / levels.max() if levels.any() else None
