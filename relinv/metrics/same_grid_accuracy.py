"""Is this the relation, where the entities cannot tell? Only relations between the same entities compete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relinv.scoring import phrase, ranked_first

if TYPE_CHECKING:
    import numpy as np

    from relinv.benchmark import Relation
    from relinv.scoring import Context

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
    rivals = [
        other
        for other in context.relations
        if other.name != context.relation.name and _grid(other) == _grid(context.relation)
    ]
    texts = [[phrase(head, rival, tail) for rival in rivals] for head, tail in context.pairs]
    return ranked_first(context.scene(), context.similarity(texts))


def _grid(relation: Relation) -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(relation.heads), frozenset(relation.tails)
