"""Does the image copy an exemplar? Its largest cosine to any of the relation's exemplars."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from relinv.scoring import Context

TITLE = "Exemplar similarity"
DESCRIPTION = (
    "Largest cosine between the image and an exemplar of its relation. The report subtracts the same for "
    "plain text-to-image on the same scenario and calls the rest leakage: what came over from the exemplars "
    "besides the relation. It sees copied backdrops, tints and entities; it cannot tell them from the "
    "relation itself, which exemplars and images are meant to share."
)
SOURCE = "Replication measured as similarity to the training images (Somepalli et al., CVPR 2023)."
HIGHER_IS_BETTER = False
BOUNDS = (-1.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return the largest cosine to an exemplar, shape (images,), defined for every image."""
    return (context.images @ context.exemplars.T).max(axis=1)
