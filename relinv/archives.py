"""Archives of strangers: nothing is written outside, no link followed, no end of files or bytes."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from relinv.errors import UserError

MAX_FILES = 20_000
MAX_BYTES = 8 * 2**30  # unpacked
MAX_NAME = 255  # bytes of a file's name, which no usual file system exceeds
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


class Member(NamedTuple):
    """One file of an archive; `plain` is false for links and devices."""

    path: PurePosixPath
    size: int
    plain: bool
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, relation: str, folder: Path) -> None:
    """Write the files that lie in a folder named `relation`, anywhere in a zip or tar `archive`, into `folder`.

    Raises UserError where the archive is missing, damaged, too large, or holds a link or a path that leads outside;
    all its members are looked at before one is written.
    """
    if not archive.is_file():
        raise UserError(f"The archive '{archive}' does not exist: correct exemplars.path in params.yaml.")
    try:
        _check(archive)
        found = _write(archive, relation, folder)
    except DAMAGE as error:
        raise UserError(
            f"The archive '{archive}' is damaged or of an unknown kind ({error}): fetch it again."
        ) from None
    if not found:
        raise UserError(f"The archive '{archive}' has no folder '{relation}': correct exemplars.path in params.yaml.")


def _check(archive: Path) -> None:
    total = 0
    for count, member in enumerate(_members(archive), start=1):
        total += member.size
        if count > MAX_FILES or total > MAX_BYTES:
            limits = f"{MAX_FILES:,} files and {MAX_BYTES // 2**30} GiB"
            raise UserError(f"The archive '{archive}' unpacks to more than {limits}: unpack it by hand.")
        parts = member.path.parts
        if not member.plain or member.path.is_absolute() or ".." in parts or any(":" in part for part in parts):
            raise UserError(f"The archive '{archive}' holds '{member.path}', a link or a path that leads outside.")
        name = member.path.name
        if len(os.fsencode(name)) > MAX_NAME:
            raise UserError(
                f"The archive '{archive}' holds a file name of more than {MAX_NAME} bytes, '{name[:40]}...': unpack it "
                "by hand."
            )


def _write(archive: Path, relation: str, folder: Path) -> bool:
    """Write the relation's files; return whether there were any. Two folders of that name are refused."""
    origin = None
    for member in _members(archive):
        path = member.path
        if path.parent.name != relation or path.name.startswith("."):
            continue
        if origin not in (None, path.parent):
            raise UserError(f"The archive '{archive}' has two folders of '{relation}', {origin} and {path.parent}.")
        origin = path.parent
        with member.open() as content, (folder / path.name).open("wb") as stream:
            shutil.copyfileobj(content, stream)
    return origin is not None


def _members(archive: Path) -> Iterator[Member]:
    """Yield every file of an archive; folders are left out."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                if not entry.is_dir():
                    link = (entry.external_attr >> 28) == 0xA  # a symbolic link, as unix zips mark it
                    yield Member(_path(entry.filename), entry.file_size, not link, partial(opened.open, entry))
        return
    with tarfile.open(archive) as opened:
        for entry in opened:
            if not entry.isdir():
                yield Member(_path(entry.name), entry.size, entry.isfile(), partial(opened.extractfile, entry))


def _path(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))
