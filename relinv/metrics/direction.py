"""Who does what to whom? The scene's phrase against the same phrase with head and tail swapped."""

from __future__ import annotations

import numpy as np

from relinv.scoring import Context, ranked_first

TITLE = "Direction"
DESCRIPTION = (
    'Share of images in which "HEAD relation TAIL" scores above "TAIL relation HEAD" (chance 1 in 2). It '
    "sees the roles of the two entities, which a bag of words cannot; it cannot be applied to symmetric "
    "relations or to scenes with the same entity twice."
)
SOURCE = "Word order as ARO (Yuksekgonul et al., ICLR 2023) and What'sUp (Kamath et al., EMNLP 2023) test it."
HIGHER_IS_BETTER = True
BOUNDS = (0.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return 1.0 where the direction is right and 0.0 elsewhere, shape (images,).

    NaN for every image of a symmetric relation, and where head and tail are the same.
    """
    if not context.relation.asymmetric:
        return np.full(len(context.pairs), np.nan)
    swapped = context.similarity([[context.relation.phrase(tail, head)] for head, tail in context.pairs])
    same = np.array([head == tail for head, tail in context.pairs], dtype=bool)
    return np.where(same, np.nan, ranked_first(context.scene(), swapped))
