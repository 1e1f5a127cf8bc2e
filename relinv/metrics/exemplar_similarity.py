"""Does the image copy an exemplar? Its largest cosine to any of the relation's exemplars."""

from __future__ import annotations

import numpy as np

from relinv.scoring import Context

TITLE = "Exemplar similarity"
DESCRIPTION = (
    "Largest cosine between the image and an exemplar of its relation. It sees the relation first, which exemplars and "
    "images are meant to share, then copied entities, backdrops and colours; it cannot tell these apart. The report's "
    "leakage compares it among images that all have the relation."
)
SOURCE = "Replication measured as similarity to the training images (Somepalli et al., CVPR 2023)."
HIGHER_IS_BETTER = False
BOUNDS = (-1.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return the largest cosine to an exemplar, shape (images,), defined for every image."""
    return (context.images @ context.exemplars.T).max(axis=1)
