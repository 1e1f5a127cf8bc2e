"""Exemplars from a folder on this machine, one folder a relation below `path`."""

from __future__ import annotations

from pathlib import Path

from relinv.downloads import copy_files, relation_folder
from relinv.errors import UserError
from relinv.exemplars import CAPTIONS
from relinv.settings import ExemplarSettings, ExemplarSource


def fill(relation: str, folder: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path) -> None:
    """Copy a relation's exemplars into `folder`; UserError where they have not been placed."""
    placed = relation_folder(Path(source.location()), relation)
    if placed is None:
        raise UserError(
            f"There are no exemplars of '{relation}': place its pictures and {CAPTIONS} in "
            f"'{Path(source.location()) / relation}', as the ReVersion benchmark lays them out."
        )
    copy_files(placed, folder)
