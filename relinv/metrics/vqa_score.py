"""VQAScore: how probably a vision-language model answers yes when asked whether the image shows its scene."""

from __future__ import annotations

import numpy as np

from relinv.scoring import Context

TITLE = "VQAScore"
DESCRIPTION = (
    'Probability that a vision-language model answers yes when it is asked whether the image shows "HEAD relation '
    'TAIL". It sees who does what to whom, as far as the model does; it cannot be compared between models, whose '
    "levels differ, and is undefined where the judge names none."
)
SOURCE = "Lin et al., ECCV 2024."
HIGHER_IS_BETTER = True
BOUNDS = (0.0, 1.0)


def score(context: Context) -> np.ndarray:
    """Return P(yes | does the image show "HEAD relation TAIL"?), shape (images,); NaN where no model is named."""
    if context.vqa is None:
        return np.full(len(context.pairs), np.nan)
    return context.vqa([context.relation.phrase(head, tail) for head, tail in context.pairs])
