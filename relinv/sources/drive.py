"""Exemplars from a public Google Drive folder, file by file."""

from __future__ import annotations

from pathlib import Path

from relinv.downloads import cache_folder, copy_files, download, relation_folder
from relinv.errors import UserError
from relinv.exemplars import CAPTIONS
from relinv.files import read_json, write_json
from relinv.settings import ExemplarSettings, ExemplarSource

FILE = "https://drive.google.com/uc?id={id}"
LISTING = "listing.json"


def fill(relation: str, folder: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path) -> None:
    """Fetch the relation's files that are not here yet, and copy all into `folder`.

    Raises UserError that names the files still missing and how to place them by hand: Drive limits how often a
    folder is read.
    """
    cache = cache_folder(scratch, source)
    if relation_folder(cache, relation) is None:
        _fetch(relation, cache, source)
    placed = relation_folder(cache, relation)
    if placed is None:
        raise UserError(
            f"The Drive folder {source.location()} has no {CAPTIONS} for '{relation}': correct its address."
        )
    copy_files(placed, folder)


def _fetch(relation: str, cache: Path, source: ExemplarSource) -> None:
    files = _listing(cache, source)
    wanted = {path: key for path, key in files.items() if Path(path).parent.name == relation}
    if not wanted:
        raise UserError(f"The Drive folder {source.location()} has no folder '{relation}': correct its address.")
    missing = [path for path in sorted(wanted) if not (cache / relation / Path(path).name).is_file()]
    while missing:
        try:
            download(FILE.format(id=wanted[missing[0]]), cache / relation / Path(missing[0]).name)
        except UserError as error:
            raise UserError(_by_hand(relation, missing, source, error)) from None
        missing.pop(0)


def _listing(cache: Path, source: ExemplarSource) -> dict[str, str]:
    """Return the id of each file of the Drive folder by its path; asked for once, for Drive counts that too."""
    import gdown

    if not (cache / LISTING).is_file():
        try:
            files = gdown.download_folder(
                source.location(), output=str(cache), skip_download=True, quiet=True, use_cookies=False, timeout=60
            )
        except Exception as error:  # gdown and requests raise many kinds
            raise UserError(
                f"The Drive folder {source.location()} cannot be listed ({_reason(error)}): try again later, "
                "or place its files by hand: python -m stages.fetch RELATION --from FOLDER"
            ) from error
        write_json(cache / LISTING, {file.path: file.id for file in files})
    return read_json(cache / LISTING, "Drive listing")


def _by_hand(relation: str, missing: list[str], source: ExemplarSource, error: UserError) -> str:
    names = ", ".join(Path(path).name for path in missing)
    return (
        f"Google Drive did not give all files of '{relation}'; still missing: {names}. ({error}) Run the same command "
        f"again later: it goes on from here. Or open {source.location()} in a browser, download the folder "
        f"'{relation}', and run: python -m stages.fetch {relation} --from FOLDER"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
