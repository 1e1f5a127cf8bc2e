"""Exemplars from a zip or tar archive: a file on this machine, or one at a web address."""

from __future__ import annotations

from pathlib import Path

from relinv.errors import UserError
from relinv.fetching.archives import unpack
from relinv.fetching.downloads import ARCHIVE, cache_folder, download, is_address
from relinv.fetching.relation_folders import fault_of, whole_folder
from relinv.settings import ExemplarSettings, ExemplarSource


def fill(relation: str, folder: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path) -> None:
    """Unpack a relation's files into `folder`.

    Raises UserError if the archive is not available, is damaged or unsafe, or does not hold the complete relation.
    """
    archive = Path(source.location())
    if is_address(source.location()):
        archive = cache_folder(scratch, source) / ARCHIVE
        download(source.location(), archive, later=True)
    elif "://" in source.location():
        raise UserError(
            f"'{source.location()}' cannot be downloaded: only http and https addresses can. Correct exemplars.path in "
            "params.yaml."
        )
    try:
        if not unpack(archive, relation, folder):
            raise UserError(
                f"The archive '{archive}' has no {whole_folder(relation)}: complete it, or correct exemplars.path in "
                "params.yaml."
            )
        if fault := fault_of(folder):
            raise UserError(f"The folder '{relation}' in the archive '{archive}' is incomplete: correct it. {fault}")
    except UserError:
        if is_address(source.location()):
            archive.unlink(missing_ok=True)  # so that the next run fetches it again
        raise
