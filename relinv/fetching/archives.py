"""Untrusted archives: nothing is written outside the folder, no link is followed, count and size are bounded."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import math
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from relinv.errors import UserError, reason
from relinv.fetching.relation_folders import place_in_relation
from relinv.files import require_utf8

MAX_FILES = 20_000
MAX_BYTES = 8 * 2**30  # unpacked
MAX_NAME = 255  # bytes in a file's name; no common file system allows more
MAX_HEADERS = 64 * 2**10  # bytes of a tar's headers before a file; tarfile keeps them all in memory
ENCRYPTED, UTF8 = 0x1, 0x800  # among the flags of a zip's entry
DRIVE = re.compile("[A-Za-z]:")
COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by first bytes
# The errno of an OSError if the archive is damaged: decompressors set none, and a bad header can make tarfile seek to a
# negative position (EINVAL). Any other errno is the system's, such as that of a full disk.
BY_CONTENT = (None, errno.EINVAL)
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError)


class Member(NamedTuple):
    """One file of an archive; `plain` is false for links and devices."""

    path: PurePosixPath
    size: int
    plain: bool
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, relation: str, folder: Path) -> bool:
    """Write the files and masks of a folder named `relation`, anywhere in a zip or tar `archive`, into `folder`.

    Returns whether there were any. Raises UserError if the archive is missing, damaged, encrypted or too large, has two
    such folders, holds a link, a path that leads outside or an overlong name, or names a file of the relation in
    anything but UTF-8. All members' paths and sizes are checked before any is written.
    """
    if archive.is_dir():
        raise UserError(f"The archive '{archive}' is a folder: set exemplars.source to folder in params.yaml.")
    if not archive.is_file():
        raise UserError(f"The archive '{archive}' does not exist: correct exemplars.path in params.yaml.")
    try:
        _check(archive, relation)
        return _write(archive, relation, folder)
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in BY_CONTENT:
            raise
        raise UserError(
            f"The archive '{archive}' is damaged or of an unknown kind ({reason(error)}): fetch it again."
        ) from None


def _check(archive: Path, relation: str) -> None:
    total = 0
    for count, member in enumerate(_members(archive), start=1):
        total += member.size
        if count > MAX_FILES or total > MAX_BYTES:
            limits = f"{MAX_FILES:,} files and {MAX_BYTES // 2**30} GiB"
            raise UserError(f"The archive '{archive}' unpacks to more than {limits}: unpack it by hand.")
        parts = member.path.parts
        if not member.plain or member.path.is_absolute() or ".." in parts or DRIVE.match(parts[0] if parts else ""):
            raise UserError(f"The archive '{archive}' holds '{member.path}', a link or a path that leads outside.")
        name = member.path.name
        if len(os.fsencode(name)) > MAX_NAME:
            raise UserError(
                f"The archive '{archive}' holds a file name of more than {MAX_NAME} bytes, '{name[:40]}...': unpack it "
                "by hand."
            )
        if place_in_relation(member.path, relation):
            require_utf8(name, f"The archive '{archive}'")


def _write(archive: Path, relation: str, folder: Path) -> bool:
    """Write the relation's files and return whether there were any; UserError if two folders have its name."""
    origin = None
    for member in _members(archive):
        place = place_in_relation(member.path, relation)
        if place is None:
            continue
        if origin not in (None, place[0]):
            raise UserError(f"The archive '{archive}' has two folders of '{relation}', {origin} and {place[0]}.")
        origin, target = place[0], folder / place[1]
        target.parent.mkdir(exist_ok=True)
        with member.open() as content, target.open("wb") as stream:
            shutil.copyfileobj(content, stream)
    return origin is not None


def _members(archive: Path) -> Iterator[Member]:
    """Yield each file of an archive, but no folders."""
    with archive.open("rb") as stream:
        start = stream.read(tarfile.BLOCKSIZE)
    if zipfile.is_zipfile(archive) and not _starts_a_tar(start):  # is_zipfile also accepts a tar that ends in a zip
        yield from _zip_members(archive)
        return
    decompress = next((found for magic, found in COMPRESSIONS.items() if start.startswith(magic)), open)
    with decompress(archive, "rb") as content:
        yield from _tar_members(_Bounded(content))


def _starts_a_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            if not entry.is_dir():
                if entry.flag_bits & ENCRYPTED:
                    remedy = "unpack it with its password, and name that folder instead"
                    raise UserError(f"The archive '{archive}' is encrypted: {remedy}.")
                link = (entry.external_attr >> 28) == 0xA  # a symbolic link, as unix zips mark it
                yield Member(_path(_name_of(entry)), entry.file_size, not link, partial(opened.open, entry))


def _name_of(entry: zipfile.ZipInfo) -> str:
    """Return the name of a zip's file. A Mac's is UTF-8, but its zip does not say so and is read as code page 437."""
    try:
        return entry.filename if entry.flag_bits & UTF8 else entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename


class _Bounded:
    """A tar's decompressed bytes; at most `left` more may be read."""

    def __init__(self, content: IO[bytes]) -> None:
        self.left: float = MAX_HEADERS
        self.seek, self.tell, self.seekable, self._read = content.seek, content.tell, content.seekable, content.read

    def read(self, size: int) -> bytes:
        """Return the next bytes; TarError if `size` exceeds what is left. Streams themselves refuse a negative one."""
        self.left -= size
        if self.left < 0:
            raise tarfile.TarError(f"more than {MAX_HEADERS // 2**10} KiB of headers before a file")
        return self._read(size)


def _tar_members(stream: _Bounded) -> Iterator[Member]:
    opened: Any = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]  # it only reads
    while (entry := opened.next()) is not None:
        if not entry.isdir():
            stream.left = math.inf  # a file's content is not limited
            yield Member(_path(entry.name), entry.size, entry.isfile(), partial(opened.extractfile, entry))
        stream.left = MAX_HEADERS
        opened.members.clear()  # otherwise all headers are kept, and the global ones copied for each file
        opened.pax_headers.clear()


def _path(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))
