"""Exemplars rendered from the miniature's world."""

from __future__ import annotations

from pathlib import Path

from relinv.settings import ExemplarSettings, ExemplarSource
from relinv.world.exemplars import write_exemplars


def fill(relation: str, folder: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path) -> None:
    """Render a relation's exemplars into `folder`. Raises UserError for a relation that the world does not have."""
    write_exemplars(relation, folder, exemplar_set=settings.set, seed=settings.seed)
