"""Exemplars from a public Google Drive folder, file by file."""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePath

from relinv.errors import UserError, reason
from relinv.fetching.downloads import LISTING, TIMEOUT, cache_folder, download, retried
from relinv.fetching.relation_folders import copy_files, place_in_relation, read_manifest, relation_folder, whole_folder
from relinv.files import read_json, write_json
from relinv.settings import ExemplarSettings, ExemplarSource

FILE = "https://drive.google.com/uc?id={id}"
GONE = {403, 404}  # statuses that mean a file has been removed
LIMIT = "Too many users"  # what Drive says if it has only been asked too often


def fill(relation: str, folder: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path) -> None:
    """Fetch the relation's files that are not here yet, and copy all into `folder`.

    Raises UserError that names any files still missing and how to place them by hand, since Drive limits how often a
    folder is read; or if no folder, or more than one, holds the relation.
    """
    cache = cache_folder(scratch, source)
    _fetch(relation, cache, source)
    placed = relation_folder(cache, relation)
    if placed is None:
        (cache / LISTING).unlink()  # so that the next run sees what has been put there since
        raise UserError(
            f"The Drive folder {source.location()} shows no {whole_folder(relation)}: correct its address or, since a "
            "busy Drive may hide some, run the same command again."
        )
    copy_files(placed, folder)


def _fetch(relation: str, cache: Path, source: ExemplarSource) -> None:
    files = _listing(relation, cache, source)
    places = {path: place for path in files if (place := place_in_relation(PurePath(path), relation))}
    folders = sorted({str(folder) for folder, _ in places.values()})
    if len(folders) > 1:
        (cache / LISTING).unlink()
        raise UserError(
            f"The Drive folder {source.location()} has two folders of '{relation}', {folders[0]} and {folders[1]}: "
            "correct its address to one that holds one of them."
        )
    wanted = {name.as_posix(): files[path] for path, (_, name) in places.items()}
    # In this order masks come before text.json: a folder with that counts as complete, masks or not.
    missing = sorted(name for name in wanted if not (cache / relation / name).is_file())
    for index, name in enumerate(missing):
        try:
            download(FILE.format(id=wanted[name]), cache / relation / name)
        except UserError as error:
            if _is_gone(error.__cause__):
                (cache / LISTING).unlink()  # so that the next run lists the ids again
            raise UserError(_by_hand(relation, missing[index:], source, error)) from None


def _is_gone(error: BaseException | None) -> bool:
    """Return whether a file may no longer exist under the id that was listed."""
    from gdown.exceptions import FileURLRetrievalError

    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in GONE
    return isinstance(error, FileURLRetrievalError) and LIMIT not in str(error)  # gdown keeps no page's status


def _listing(relation: str, cache: Path, source: ExemplarSource) -> dict[str, str]:
    """Return the id of each file in the Drive folder by path; listed only once, since Drive limits that too."""
    if not (cache / LISTING).is_file():
        address = source.location()
        try:
            files = retried(partial(_list, address, cache))
        except Exception as error:  # gdown and requests raise many kinds
            raise UserError(
                f"The Drive folder {address} cannot be listed ({reason(error)}): try again later, or place the files "
                f"of '{relation}'{_recorded(relation, source)} by hand: python -m stages.fetch {relation} --from FOLDER"
            ) from error
        listing = dict(files)
        if len(listing) < len(files):
            raise UserError(
                f"The Drive folder {address} holds two files, or folders, of one name in one place: place the files "
                f"you want by hand: python -m stages.fetch {relation} --from FOLDER"
            )
        write_json(cache / LISTING, listing)
    return read_json(cache / LISTING, "Drive listing")


def _recorded(relation: str, source: ExemplarSource) -> str:
    """Return the names of a relation's files in brackets if a manifest records them, else nothing."""
    names = read_manifest(relation, source)
    return f" ({', '.join(names)})" if names else ""


def _list(address: str, cache: Path) -> list[tuple[str, str]]:
    """Return a Drive folder's paths and ids, in one try; an empty answer, which a busy Drive gives too, is an error."""
    import gdown
    from gdown.exceptions import DownloadError

    files = gdown.download_folder(
        address, output=str(cache), skip_download=True, quiet=True, use_cookies=False, timeout=TIMEOUT
    )
    if not files:
        raise DownloadError("it shows no files")
    return [(file.path, file.id) for file in files]


def _by_hand(relation: str, missing: list[str], source: ExemplarSource, error: UserError) -> str:
    return (
        f"Google Drive did not give all files of '{relation}'; still missing: {', '.join(missing)}. ({error}) Run the "
        f"same command again later: it goes on from here. Or open {source.location()} in a browser, download the "
        f"folder '{relation}', and name the folder its zip is in: python -m stages.fetch {relation} --from FOLDER"
    )
