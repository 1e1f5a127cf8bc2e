"""Is the scene right? Relation and both entities at once: the headline."""

from __future__ import annotations

import numpy as np

from relinv.scoring import Context, ranked_first

TITLE = "Scene accuracy"
DESCRIPTION = (
    "Share of images that are right in both relation accuracy and entity accuracy. It sees if a relation is gained "
    "at the cost of the entities, or the reverse; it cannot see who does what to whom (see direction)."
)
SOURCE = "Both halves right at once, as Winoground scores a group (Thrush et al., CVPR 2022)."
HIGHER_IS_BETTER = True
BOUNDS = (0.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return 1.0 where the scene outranks other relations and other entities, else 0.0, shape (images,).

    NaN if the benchmark has no other relation, or the grid no other cell.
    """
    scene = context.scene()
    return ranked_first(scene, context.other_relations()) * ranked_first(scene, context.other_entities())
