"""Downloads: resumed where they were cut off, kept in the scratch folder, and found again."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

from relinv.errors import UserError
from relinv.exemplars import CAPTIONS, MASKS, read_exemplars
from relinv.settings import ExemplarSource

RETRIES = 6  # the wait before each is drawn up to twice as long as before the last, at most half a minute
TIMEOUT = 60.0  # seconds without a byte
BUSY = {429, 500, 502, 503, 504}  # answers that ask to come again


def is_address(path: str) -> bool:
    """Return whether `path` is to be downloaded."""
    return urlsplit(path).scheme in {"http", "https"}


def cache_folder(scratch: Path, source: ExemplarSource) -> Path:
    """Return the folder below `scratch` that keeps what is downloaded from `source`, made if need be."""
    digest = hashlib.sha256(f"{source.source}|{source.location()}".encode()).hexdigest()
    folder = Path(scratch) / "downloads" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def download(address: str, path: Path) -> None:
    """Download `address` to `path`, which appears when it is whole; nothing is done where it is there already.

    What breaks off is taken up where it broke, at once and again in a later run. Raises UserError where it cannot be
    had.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(RETRIES + 1):
        try:
            _download(address, path)
            return
        except Exception as error:  # gdown, requests and urllib3 each raise kinds of their own
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status not in BUSY or attempt == RETRIES:
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                raise UserError(f"'{address}' cannot be downloaded: {reason}") from error
        time.sleep(random.uniform(0, min(2**attempt, 30)))


def _download(address: str, path: Path) -> None:
    """Download once; gdown itself goes on where a connection breaks off."""
    import gdown

    gdown.download(address, str(path), quiet=True, use_cookies=False, resume=True, retries=RETRIES, timeout=TIMEOUT)


def relation_folder(root: Path, relation: str) -> Path | None:
    """Return the folder of `relation` at or below `root` that holds its text.json and every picture this names."""
    folders = [root, *sorted(path.parent for path in root.rglob(f"{relation}/{CAPTIONS}"))] if root.is_dir() else []
    for folder in folders:
        if folder.name == relation and (folder / CAPTIONS).is_file() and _is_whole(folder):
            return folder
    return None


def _is_whole(folder: Path) -> bool:
    try:
        read_exemplars(folder)
    except UserError:
        return False
    return True


def copy_files(source: Path, target: Path) -> None:
    """Copy the visible files of one relation's folder into another, and its masks."""
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)
    if (source / MASKS).is_dir():
        shutil.copytree(source / MASKS, target / MASKS)
