"""How much better does the relation fit than others? The scene's cosine minus the others' mean."""

from __future__ import annotations

import numpy as np

from relinv.scoring import Context

TITLE = "Relation margin"
DESCRIPTION = (
    'Cosine of the image with "HEAD relation TAIL" minus its mean cosine with the benchmark\'s other relations '
    "between the same two entities, so that the entities cancel out. It sees the relation as a matter of degree; it "
    "cannot see which other relation came close."
)
SOURCE = "A contrast of CLIPScores (Hessel et al., EMNLP 2021) at fixed entities."
HIGHER_IS_BETTER = True
BOUNDS = (-2.0, 2.0)


def score(context: Context) -> np.ndarray:
    """Return the margin, shape (images,); NaN if the benchmark has a single relation."""
    others = context.other_relations()
    return context.scene() - (others.mean(axis=1) if others.size else np.nan)
