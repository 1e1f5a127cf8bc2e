"""Does the image show what the exemplars show? Its mean cosine to the exemplars."""

from __future__ import annotations

import numpy as np

from relinv.scoring import Context

TITLE = "Image similarity"
DESCRIPTION = (
    "Mean cosine between the image and the exemplars. It sees how faithful an object is: more is better, as long as "
    "the image also fits its prompt (relation similarity, with the category's word in place of the token). It cannot "
    "say how well a relation is drawn, because the relation's exemplars show other entities."
)
SOURCE = "CLIP-I (Gal et al. 2022; Ruiz et al., CVPR 2023)."
HIGHER_IS_BETTER = True
BOUNDS = (-1.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return the mean cosine to the exemplars, shape (images,), defined for every image."""
    return (context.images @ context.exemplars.T).mean(axis=1)
