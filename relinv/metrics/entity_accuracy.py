"""Are these two the entities? The scene's phrase against phrases with one entity replaced."""

from __future__ import annotations

import numpy as np

from relinv.scoring import Context, ranked_first

TITLE = "Entity accuracy"
DESCRIPTION = (
    'Share of images in which "HEAD relation TAIL" scores above each phrase with the head replaced by '
    "another head of the relation's grid, or the tail by another tail (chance 1 in 19 on a 10 x 10 grid). "
    "It sees a lost or blended entity; it cannot see whether the relation holds."
)
SOURCE = "Retrieval among hard negatives, as ARO tests it (Yuksekgonul et al., ICLR 2023)."
HIGHER_IS_BETTER = True
BOUNDS = (0.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return 1.0 where the pair ranks first, else 0.0, shape (images,); NaN if the grid has a single cell."""
    return ranked_first(context.scene(), context.other_entities())
