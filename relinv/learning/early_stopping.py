"""When to stop: the loss on one fixed batch shows what the loss of each step, which is noisy, hides.

DVAR (Voronov et al., "Is This Loss Informative? Faster Text-to-Image Customization by Tracking Objective Dynamics",
NeurIPS 2023): with pictures, captions, timesteps and noise all fixed, the loss falls and then levels off; training ends
when its variance over a recent window is a small share of its variance over all of training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import pvariance

EVALUATIONS = 10  # per window; each costs a pass of the UNet without gradients


@dataclass
class EarlyStopping:
    """Ends a training when the fixed loss has levelled off.

    window: in steps, at least EVALUATIONS. threshold: the share of variance below which the loss is level.
    """

    window: int
    threshold: float
    losses: list[float] = field(default_factory=list)  # of the evaluations so far

    @property
    def every(self) -> int:
        """Return the number of steps between two evaluations."""
        return self.window // EVALUATIONS

    def is_due(self, done: int) -> bool:
        """Return whether to evaluate the fixed loss after `done` steps."""
        return done % self.every == 0

    def is_over(self) -> bool:
        """Return whether training may end, which takes at least two full windows of evaluations."""
        if len(self.losses) < 2 * EVALUATIONS:
            return False
        return pvariance(self.losses[-EVALUATIONS:]) < self.threshold * pvariance(self.losses)
