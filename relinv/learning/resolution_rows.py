"""Shared by methods whose token may have one row per range of timesteps, from fine detail to coarse layout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from relinv.adapters.multires import Adapter, resolution
from relinv.diffusion.embeddings import TOKEN
from relinv.diffusion.token_rows import ROWS
from relinv.learning.token_row import TokenRowMethod, TokenRowSettings

if TYPE_CHECKING:
    import torch

    from relinv.learning.method import LossInputs


class ResolutionRowsSettings(TokenRowSettings):
    """How the rows are learned; each starts from the same word."""

    resolutions: Annotated[int, Field(ge=1, le=100)]  # equal ranges of timesteps, one row each; 1: one row for all


class ResolutionRowsMethod(TokenRowMethod):
    """Learns one row of `<r>` per resolution, at its own timesteps; with one resolution it is a plain token row."""

    settings: ResolutionRowsSettings

    def _place(self, row: torch.Tensor) -> tuple[torch.nn.Parameter, Callable[[], AbstractContextManager[None]]]:
        """Return the rows and the block that applies them; several are applied by an adapter instead."""
        if self.settings.resolutions == 1:
            return super()._place(row)
        rows = Adapter(self.base, TOKEN, {ROWS: row.expand(self.settings.resolutions, -1)}, {})
        self.adapters = [*self.adapters, rows]
        return rows.tensors[ROWS], nullcontext

    def rows_of(self, inputs: LossInputs) -> torch.Tensor:
        """Return the rows that a step's captions use, (batch, dim), or the only one, (dim,)."""
        if self.settings.resolutions == 1:
            return super().rows_of(inputs)
        total = self.base.scheduler.config.num_train_timesteps
        return self._learned[resolution(inputs.timesteps, self.settings.resolutions, total)]

    def embedding(self) -> torch.Tensor | None:
        """Return the only row, (dim,), or None if there are several, which the adapter's file holds."""
        return super().embedding() if self.settings.resolutions == 1 else None
