"""How well does the image fit its scene? The cosine between the image and "HEAD relation TAIL"."""

from __future__ import annotations

import numpy as np

from relinv.scoring import Context

TITLE = "Relation similarity"
DESCRIPTION = (
    'Cosine between the image and "HEAD relation TAIL". It sees the scene as a whole; it cannot single '
    "out the relation, because CLIP reads a phrase much like a bag of words, in which the entities weigh more. "
    "Read it with the margin."
)
SOURCE = "CLIPScore, unscaled (Hessel et al., EMNLP 2021)."
HIGHER_IS_BETTER = True
BOUNDS = (-1.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return cos(image, "HEAD relation TAIL"), shape (images,), defined for every image."""
    return context.scene()
