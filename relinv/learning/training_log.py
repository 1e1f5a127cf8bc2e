"""What a training records besides what it learns in the end: its losses by step, and previews."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from relinv.learning.losses import LossTerm, weighted_sum

LOSSES = "losses.csv"


@dataclass
class TrainingLog:
    """The loss terms of each step, and previews by name: pictures, and the token at the same step if it is a row."""

    names: list[str] = field(default_factory=list)  # of the loss terms; the total comes last
    losses: list[torch.Tensor] = field(default_factory=list)  # one vector per step, in the order of `names`
    previews: dict[str, bytes] = field(default_factory=dict)  # files' contents: PNG, safetensors

    def add(self, terms: Mapping[str, LossTerm]) -> None:
        """Add the terms of the next step; ValueError, a method's mistake, if they are not those of the last."""
        if self.losses and self.names != [*terms, "total"]:
            raise ValueError(
                f"A method's loss terms must be the same at every step, not {self.names[:-1]}, then {[*terms]}"
            )
        self.names = [*terms, "total"]
        values = [*(term.value for term in terms.values()), weighted_sum(terms)]
        self.losses.append(torch.stack(values).detach())

    def files(self) -> dict[str, bytes]:
        """Return the content of losses.csv and of each preview, by their paths in a concept folder."""
        previews = {f"previews/{name}": data for name, data in self.previews.items()}
        return {LOSSES: self.losses_csv().encode(), **previews}

    @property
    def steps(self) -> int:
        """Return the number of steps taken."""
        return len(self.losses)

    def first_diverged(self) -> str:
        """Return which terms of the loss were the first not to be finite numbers, and when; "" if all were at once."""
        for step, values in enumerate(torch.stack(self.losses).tolist(), start=1):
            *terms, total = (math.isfinite(value) for value in values)
            if not total:
                names = [f"'{name}'" for name, finite in zip(self.names, terms, strict=False) if not finite]
                return f"{' and '.join(names)} at step {step}" if any(terms) and names else ""
        return ""

    def losses_csv(self) -> str:
        """Return the loss log as CSV: the step and one column per term, to six significant digits."""
        lines = [",".join(["step", *self.names])]
        steps = torch.stack(self.losses).tolist()  # read from a GPU once
        for step, values in enumerate(steps, start=1):
            lines.append(",".join([str(step), *(f"{value:.6g}" for value in values)]))
        return "\n".join(lines) + "\n"
