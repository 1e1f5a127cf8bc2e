"""Downloads: resumed where they were cut off, if of the same file, kept in the scratch folder, and reused."""

from __future__ import annotations

import glob
import hashlib
import random
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from relinv.errors import UserError, reason
from relinv.files import atomic_write_text, read_text
from relinv.settings import ExemplarSource

T = TypeVar("T")
ARCHIVE, LISTING = "archive", "listing.json"  # what a source's download has of all relations together
RETRIES = 6  # before each, a random wait of up to 1, 2, 4, 8, 16 and 32 s
TIMEOUT = 60.0  # seconds without a byte
KEPT = re.compile("The received bytes are kept in .*")  # gdown's advice, an option of its own command line
BUSY = {429, 500, 502, 503, 504}  # HTTP statuses that invite another try


def is_address(path: str) -> bool:
    """Return whether `path` is a web address."""
    return path.lower().startswith(("http://", "https://"))


def cache_folder(scratch: Path, source: ExemplarSource) -> Path:
    """Make and return the folder below `scratch` for downloads from `source`, named by a hash of the source."""
    digest = hashlib.sha256(f"{source.source}|{source.path or ''}".encode()).hexdigest()
    folder = Path(scratch) / "downloads" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def download(address: str, path: Path, later: bool = False) -> None:
    """Download `address` to `path`, which appears only when complete; do nothing if it exists.

    A broken download is resumed where it broke at once; if `later`, in a later run too, as long as the server says that
    the file is the same, for which it is asked once more. Raises UserError if it fails.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = path.with_name(f".{path.name}.version")
    try:
        version = retried(partial(_version, address)) if later else ""
        if not version or not mark.is_file() or read_text(mark) != version:
            _discard_parts(path)  # else what comes now would be put behind what there was then
            mark.unlink(missing_ok=True)
        if version:
            atomic_write_text(mark, version)
        retried(partial(_download, address, path))
        mark.unlink(missing_ok=True)
    except Exception as error:  # gdown, requests and urllib3 each raise their own kinds
        said = KEPT.sub("Run the same command again.", reason(error))
        raise UserError(f"'{address}' cannot be downloaded: {said}") from error


def _version(address: str) -> str:
    """Return what the server says of the version of the file at an address; "" if it says nothing."""
    import requests

    answer = requests.head(address, allow_redirects=True, timeout=TIMEOUT)
    if answer.status_code in BUSY:
        answer.raise_for_status()
    found = [answer.headers.get(name, "") for name in ("ETag", "Last-Modified")]
    return " ".join([*found, answer.headers.get("Content-Length", "")]) if answer.ok and any(found) else ""


def _discard_parts(path: Path) -> None:
    """Remove what gdown keeps of a download that broke off."""
    for part in path.parent.glob(f"{glob.escape(path.name)}{'?' * 8}.part"):
        part.unlink()


def _download(address: str, path: Path) -> None:
    """Download once; gdown itself resumes a broken connection. A partial file that cannot be resumed is discarded."""
    import gdown
    from gdown.exceptions import DownloadError

    try:
        gdown.download(address, str(path), quiet=True, use_cookies=False, resume=True, retries=RETRIES, timeout=TIMEOUT)
    except DownloadError as error:
        if "byte range" in str(error):  # gdown would keep its partial file and ask in vain for the rest, for ever
            _discard_parts(path)
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
