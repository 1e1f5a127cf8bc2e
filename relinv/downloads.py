"""Downloads: resumed where they were cut off, kept in the scratch folder, and reused."""

from __future__ import annotations

import glob
import hashlib
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath
from typing import TypeVar
from urllib.parse import urlsplit

from relinv.errors import UserError, reason
from relinv.exemplars import CAPTIONS, MASKS, read_exemplars
from relinv.files import is_visible, require_utf8
from relinv.settings import ExemplarSource

T = TypeVar("T")
ARCHIVE, LISTING = "archive", "listing.json"  # what a source's download has of all relations together
RETRIES = 6  # before each, a random wait of up to 1, 2, 4, 8, 16 and 32 s
TIMEOUT = 60.0  # seconds without a byte
BUSY = {429, 500, 502, 503, 504}  # HTTP statuses that invite another try


def is_address(path: str) -> bool:
    """Return whether `path` is a web address."""
    return urlsplit(path).scheme in {"http", "https"}


def cache_folder(scratch: Path, source: ExemplarSource) -> Path:
    """Make and return the folder below `scratch` for downloads from `source`, named by a hash of the source."""
    digest = hashlib.sha256(f"{source.source}|{source.path or ''}".encode()).hexdigest()
    folder = Path(scratch) / "downloads" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def download(address: str, path: Path) -> None:
    """Download `address` to `path`, which appears only when complete; do nothing if it exists.

    A broken download is resumed where it broke, at once and again in a later run. Raises UserError if it fails.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        retried(partial(_download, address, path))
    except Exception as error:  # gdown, requests and urllib3 each raise their own kinds
        raise UserError(f"'{address}' cannot be downloaded: {reason(error)}") from error


def _download(address: str, path: Path) -> None:
    """Download once; gdown itself resumes a broken connection. A partial file that cannot be resumed is discarded."""
    import gdown
    from gdown.exceptions import DownloadError

    try:
        gdown.download(address, str(path), quiet=True, use_cookies=False, resume=True, retries=RETRIES, timeout=TIMEOUT)
    except DownloadError as error:
        if "byte range" in str(error):  # gdown would keep its partial file and ask in vain for the rest, for ever
            for part in path.parent.glob(f"{glob.escape(path.name)}{'?' * 8}.part"):
                part.unlink()
        raise


def retried(work: Callable[[], T]) -> T:
    """Return what `work` returns; a failure that may be temporary is retried after a wait."""
    for attempt in range(RETRIES):
        try:
            return work()
        except Exception as error:
            if not _may_pass(error):
                raise
        time.sleep(random.uniform(0, 2**attempt))
    return work()


def _may_pass(error: Exception) -> bool:
    """Return whether a busy server, a lost connection or Drive's limit may be behind `error`."""
    import requests
    from gdown.exceptions import DownloadError  # how gdown reports any answer of Drive's, its limit included

    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in BUSY
    if isinstance(error.__cause__, requests.RequestException):
        return False  # gdown itself has already retried as often
    refused = isinstance(error, (requests.exceptions.SSLError, requests.exceptions.ProxyError))
    return isinstance(error, (DownloadError, requests.ConnectionError, requests.Timeout)) and not refused


def relation_folder(root: Path, relation: str) -> Path | None:
    """Return the folder of `relation` at or below `root` that holds its text.json and every picture named there.

    The shallowest, if there are several.
    """
    if not root.is_dir():
        return None
    below = [path.parent for path in root.rglob(f"{relation}/{CAPTIONS}")]
    for folder in [root, *sorted(below, key=lambda folder: (len(folder.parts), folder))]:
        if folder.name == relation and not fault_of(folder):
            return folder
    return None


def place_in_relation(path: PurePath, relation: str) -> tuple[PurePath, PurePath] | None:
    """Return the folder of `relation` that `path` lies in, and its path there, such as "masks/0.png" for a mask.

    None if `path` is not a file of `relation`, or one that `is_visible` excludes.
    """
    for folder in path.parents[:2]:
        if folder.name == relation and path.parent in (folder, folder / MASKS) and is_visible(path.name):
            return folder, path.relative_to(folder)
    return None


def fault_of(folder: Path) -> str:
    """Return why a relation's folder lacks a valid text.json or a picture named there, "" if it lacks neither."""
    if not (folder / CAPTIONS).is_file():
        return f"It has no {CAPTIONS}."
    try:
        read_exemplars(folder)
    except UserError as error:
        return str(error).replace(f"{folder}/", "")  # the folder may be a temporary one
    return ""


def whole_folder(relation: str) -> str:
    """Return what error messages call a complete folder of `relation`."""
    return f"folder '{relation}' with a {CAPTIONS} and every picture this names"


def copy_files(source: Path, target: Path) -> None:
    """Copy the visible files of one relation's folder, masks included, into another.

    Raises UserError, before any is copied, if a name is not UTF-8.
    """
    files = [path for folder in (source, source / MASKS) for path in sorted(folder.glob("*")) if path.is_file()]
    names = [path.relative_to(source) for path in files if is_visible(path.name)]
    for name in names:
        require_utf8(name.name, f"'{source}'")
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
