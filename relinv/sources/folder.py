"""Exemplars from a folder on this machine, with one folder per relation below `path`."""

from __future__ import annotations

from pathlib import Path

from relinv.errors import UserError
from relinv.exemplars import CAPTIONS
from relinv.fetching.relation_folders import copy_files, fault_of, relation_folder
from relinv.settings import ExemplarSettings, ExemplarSource


def fill(relation: str, folder: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path) -> None:
    """Copy a relation's exemplars into `folder`. Raises UserError if they have not been placed."""
    root = Path(source.location())
    placed, usual = relation_folder(root, relation), root / relation
    if placed is None:
        fault = f" {fault_of(usual)}" if usual.is_dir() else ""
        raise UserError(
            f"There are no exemplars of '{relation}': place its pictures and {CAPTIONS} in '{usual}', as the ReVersion "
            f"benchmark lays them out.{fault}"
        )
    copy_files(placed, folder)
