"""Exemplars from a public Google Drive folder, file by file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from relinv.downloads import TIMEOUT, cache_folder, copy_files, download, relation_folder, retried
from relinv.errors import UserError, reason
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
    _fetch(relation, cache, source)
    placed = relation_folder(cache, relation)
    if placed is None:
        (cache / LISTING).unlink()  # so that the next run sees what has been put there since
        raise UserError(
            f"The Drive folder {source.location()} has no folder '{relation}' with a {CAPTIONS} and every picture this "
            "names: correct its address."
        )
    copy_files(placed, folder)


def _fetch(relation: str, cache: Path, source: ExemplarSource) -> None:
    files = _listing(cache, source)
    wanted = {path: key for path, key in files.items() if Path(path).parent.name == relation}
    missing = [path for path in sorted(wanted) if not (cache / relation / Path(path).name).is_file()]
    while missing:
        try:
            download(FILE.format(id=wanted[missing[0]]), cache / relation / Path(missing[0]).name)
        except UserError as error:
            raise UserError(_by_hand(relation, missing, source, error)) from None
        missing.pop(0)


def _listing(cache: Path, source: ExemplarSource) -> dict[str, str]:
    """Return the id of each file of the Drive folder by its path; asked for once, for Drive counts that too."""
    if not (cache / LISTING).is_file():
        address = source.location()
        try:
            files = retried(partial(_list, address, cache))
        except Exception as error:  # gdown and requests raise many kinds
            raise UserError(
                f"The Drive folder {address} cannot be listed ({reason(error)}): try again later, "
                "or place its files by hand: python -m stages.fetch RELATION --from FOLDER"
            ) from error
        write_json(cache / LISTING, files)
    return read_json(cache / LISTING, "Drive listing")


def _list(address: str, cache: Path) -> dict[str, str]:
    """Ask once for the ids of a Drive folder's files; an empty answer, which a busy Drive gives too, is an error."""
    import gdown
    from gdown.exceptions import DownloadError

    files = gdown.download_folder(
        address, output=str(cache), skip_download=True, quiet=True, use_cookies=False, timeout=TIMEOUT
    )
    if not files:
        raise DownloadError("it shows no files")
    return {file.path: file.id for file in files}


def _by_hand(relation: str, missing: list[str], source: ExemplarSource, error: UserError) -> str:
    names = ", ".join(Path(path).name for path in missing)
    return (
        f"Google Drive did not give all files of '{relation}'; still missing: {names}. ({error}) Run the same command "
        f"again later: it goes on from here. Or open {source.location()} in a browser, download the folder "
        f"'{relation}', and run: python -m stages.fetch {relation} --from FOLDER"
    )
