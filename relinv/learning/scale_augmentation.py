"""Scale augmentation (Kumari et al., "Custom Diffusion", 2023): pictures shown smaller and larger.

Captions mention a much smaller or a larger size, and the loss counts only where the picture is. The sizes are those of
the published code for 512 pixels, as shares of the side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from relinv.learning.method import TrainingPicture

if TYPE_CHECKING:
    import torch

SMALLER = 0.66  # probability that a picture is shown smaller, or at most as it is
SMALL_SIDES, LARGE_SIDES = (170 / 512, 1.0), (614 / 512, 716 / 512)  # smallest and largest, uniform between
FAR = 0.6  # below this share of the side, captions say that the picture is small
GREY = (127, 127, 127)  # around a smaller picture: the middle of the levels, about 0 to the autoencoder
FAR_PREFIXES, NEAR_PREFIXES = ("a far away ", "very small "), ("zoomed in ", "close up ")


def scale_variant(picture: TrainingPicture, cells: int, generator: torch.Generator) -> TrainingPicture:
    """Return a square picture at a random scale and place, with matching captions and a mask of where the loss counts.

    `cells` is the side of the latents, and of the mask.
    """
    import torch

    full = picture.image.width
    small = torch.rand((), generator=generator).item() < SMALLER
    low, high = (round(share * full) for share in (SMALL_SIDES if small else LARGE_SIDES))
    side = _integer(low, high, generator)
    left, top = (_integer(0, abs(full - side), generator) for _ in range(2))
    prefixes = (FAR_PREFIXES if side < FAR * full else ("",)) if small else NEAR_PREFIXES
    templates = [prefix + template for prefix in prefixes for template in picture.templates]
    mask = _inside(left, top, side, full / cells, cells) if small else None
    if picture.mask is not None:
        placed = _placed(_as_picture(picture.mask, full), left, top, side).resize((cells, cells))
        own = torch.from_numpy(np.array(placed)) / 255  # (cells, cells)
        mask = own if mask is None else own * mask
    return TrainingPicture(_placed(picture.image, left, top, side), templates, mask)


def _as_picture(mask: torch.Tensor, side: int) -> Image.Image:
    """Return a mask, (h, w) in [0, 1], as a greyscale picture of `side` pixels."""
    return Image.fromarray((mask * 255).byte().cpu().numpy()).resize((side, side), Image.Resampling.BILINEAR)


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """Return an integer from `low` to `high`, both included."""
    import torch

    return int(torch.randint(low, high + 1, (), generator=generator))


def _placed(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    """Return the picture scaled to `side` pixels: pasted at an offset on grey if smaller, cropped at it if larger."""
    full = image.width
    scaled = image.resize((side, side), Image.Resampling.BICUBIC)
    if side > full:
        return scaled.crop((left, top, left + full, top + full))
    canvas = Image.new(image.mode, (full, full), GREY if image.mode == "RGB" else GREY[0])
    canvas.paste(scaled, (left, top))
    return canvas


def _inside(left: int, top: int, side: int, cell: float, cells: int) -> torch.Tensor:
    """Return a mask, (cells, cells), of a pasted picture minus about one cell, of `cell` pixels, on each side."""
    import torch

    mask = torch.zeros(cells, cells)
    (x0, x1), (y0, y1) = (_cells(start, side, cell) for start in (left, top))
    mask[y0:y1, x0:x1] = 1
    return mask


def _cells(start: int, side: int, cell: float) -> Sequence[int]:
    return int(start // cell) + 1, int((start + side) // cell) - 1
