"""Is this the relation? The scene's phrase against the same entities in every other relation."""

from __future__ import annotations

import numpy as np

from relinv.scoring import Context, ranked_first

TITLE = "Relation accuracy"
DESCRIPTION = (
    'Share of images in which "HEAD relation TAIL" scores above the same two entities in each other '
    "relation of the benchmark (chance 1 in 10 for ten relations). It sees which relation is drawn; it "
    "cannot see whether the entities are right, nor, for relations whose grids differ, whether the entities "
    "gave the relation away."
)
SOURCE = "Classification at fixed entities, as ARO tests relations (Yuksekgonul et al., ICLR 2023)."
HIGHER_IS_BETTER = True
BOUNDS = (0.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return 1.0 where the relation ranks first, else 0.0, shape (images,); NaN if it is the only one."""
    return ranked_first(context.scene(), context.other_relations())
