"""Are both entities there? The cosine between the image and "HEAD and TAIL"."""

from __future__ import annotations

import numpy as np

from relinv.scoring import Context

TITLE = "Entity similarity"
DESCRIPTION = (
    "Cosine between the image and the two entities' names. It sees whether the entities are recognisable; "
    "it cannot see which relation they stand in, and its level differs from pair to pair. Scenarios of an object have "
    "one entity, so for them it is undefined."
)
SOURCE = (
    "CLIPScore, unscaled (Hessel et al., EMNLP 2021); the entity score of ReVersion (Huang et al., 2024) has its size."
)
HIGHER_IS_BETTER = True
BOUNDS = (-1.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return cos(image, "HEAD and TAIL"), shape (images,), NaN where a scenario has no head: its token is an object."""
    cosines = context.similarity([[f"{head} and {tail}"] for head, tail in context.pairs])[:, 0]
    return np.where([head != "" for head, _ in context.pairs], cosines, np.nan)
