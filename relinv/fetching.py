"""Where exemplars come from: rendered from the miniature's world, or copied from a folder placed by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

from relinv.errors import UserError
from relinv.exemplars import CAPTIONS
from relinv.files import atomic_folder
from relinv.settings import ExemplarSettings, ExemplarSource


def fetch_exemplars(relation: str, target: Path, source: ExemplarSource, settings: ExemplarSettings) -> None:
    """Fill the folder `target` with a relation's pictures and text.json, whole or not at all.

    Raises UserError where they are to be copied and the folder to copy is not there.
    """
    if source.source == "folder":
        placed = _placed_folder(relation, source)
        with atomic_folder(target) as folder:
            shutil.copytree(placed, folder, dirs_exist_ok=True)
        return

    from relinv.world.exemplars import write_exemplars

    with atomic_folder(target) as folder:
        write_exemplars(relation, folder, exemplar_set=settings.set, seed=settings.seed)


def _placed_folder(relation: str, source: ExemplarSource) -> Path:
    if source.path is None:
        raise UserError("The base's exemplars have source 'folder' but no path: set exemplars.path in params.yaml.")
    folder = source.path / relation
    if not (folder / CAPTIONS).is_file():
        raise UserError(
            f"There are no exemplars of '{relation}': place its pictures and {CAPTIONS} in '{folder}', "
            "as the ReVersion benchmark lays them out."
        )
    return folder
