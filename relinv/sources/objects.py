"""Rendered exemplars of objects that the miniature's base has never seen."""

from __future__ import annotations

from pathlib import Path

from relinv.settings import ExemplarSettings, ExemplarSource
from relinv.world.objects import write_object_exemplars


def fill(relation: str, folder: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path) -> None:
    """Render an object's exemplars into `folder`. Raises UserError for an unknown object."""
    write_object_exemplars(relation, folder, seed=settings.seed)
