"""Is this the relation, where the entities cannot tell? Only relations between the same entities compete."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from relinv.benchmark import Relation
from relinv.scoring import Context, ranked_first

TITLE = "Same-grid accuracy"
DESCRIPTION = (
    'Share of images in which "HEAD relation TAIL" scores above the same two entities in each other relation that has '
    "the same heads and tails in the benchmark (shaking hands, hugging and back to back: chance 1 in 3). It sees the "
    "relation where the entities cannot give it away; it cannot be applied to a relation that shares its entities with "
    "no other."
)
SOURCE = "Relation accuracy among relations of one grid."
HIGHER_IS_BETTER = True
BOUNDS = (0.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return 1.0 where the relation ranks first of those with its grid, else 0.0, shape (images,); NaN without any."""
    same = tuple(relation for relation in context.relations if _grid(relation) == _grid(context.relation))
    return ranked_first(context.scene(), replace(context, relations=same).other_relations())


def _grid(relation: Relation) -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(relation.heads), frozenset(relation.tails)
