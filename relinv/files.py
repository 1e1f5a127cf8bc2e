"""Reading and writing files: results appear whole or not at all, and a bad file is named in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from relinv.errors import UserError, is_out_of_memory, reason

if TYPE_CHECKING:
    from PIL.Image import Image

LEFT_BY_WINDOWS = {"thumbs.db", "ehthumbs.db", "desktop.ini"}  # in folders of pictures, in small letters
UNREADABLE = "The {} nests too deeply, or holds a value that cannot be read: correct it."


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `path` when the block succeeds, making its folder.

    A reader sees the old file or the whole new one. An OSError raised when that fails names `path`, also where a
    library's own error hides it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the process id: writers never share one
    try:
        with temporary.open("wb") as stream:
            yield stream
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save ends a file that it could not write by a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        # a full disk names no file by itself, and what else fails the temporary one
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, as `atomic_file` does."""
    with atomic_file(path) as stream:
        stream.write(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with unix line ends, whole or not at all."""
    atomic_write_bytes(path, text.encode("utf-8"))


def is_visible(name: str) -> bool:
    """Return whether a person put a file of that name there: it is not hidden, nor what Windows makes by itself."""
    return not name.startswith(".") and name.lower() not in LEFT_BY_WINDOWS


def require_utf8(name: str, holder: str) -> None:
    """Raise UserError for a file's name in `holder` that is not UTF-8, as old cameras and archives have."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode("utf-8")
        raise UserError(f"{holder} holds a name that is not UTF-8, '{shown}': rename that file.") from None


@contextmanager
def opened_picture(path: Path, what: str = "picture", remedy: str = "replace it") -> Iterator[Image]:
    """Yield a picture's file, whose pixels are read when they are asked for.

    What fails in opening it or inside the block is told by a UserError: `what` names its role, `remedy` what to do.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            yield opened
    except Exception as error:  # a damaged file may set off any kind in a decoder
        if is_out_of_memory(error):
            raise
        raise UserError(f"The {what} '{path}' cannot be read ({reason(error)}): {remedy}.") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place, old content gone, when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    new, old = workspace / "new", workspace / "old"
    try:
        new.mkdir()  # not the 0700 folder of mkdtemp itself: results keep the usual permissions
        yield new
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_folder(path: Path) -> str:
    """Return one hex SHA-256 over the relative names and bytes of all files below `path`, in name order."""
    path = Path(path)
    return sha256_files(path, sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()))


def sha256_files(root: Path, names: Iterable[str], hash_of: Callable[[Path], str] = sha256_file) -> str:
    """Return one hex SHA-256 over the `names` and bytes of files below `root`, in the order given.

    hash_of: how each file's own hash is found.
    """
    lines = [f"{hash_of(root / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def code_hash(root: Path, parts: Iterable[str]) -> str:
    """Return one hex SHA-256 over the code at `parts` of `root`: files, and in folders all Python and YAML below."""
    root = Path(root)
    files = [path for part in parts for path in ((root / part).rglob("*") if (root / part).is_dir() else [root / part])]
    names = sorted(path.relative_to(root).as_posix() for path in files if path.suffix in {".py", ".yaml"})
    return sha256_files(root, names)


def read_text(path: Path, what: str = "file", remedy: str = "") -> str:
    """Return the UTF-8 text of `path`, without the byte order mark that some editors begin it with.

    In the UserError raised when that fails `what` names the file's role, and `remedy` says what to do where it is
    missing.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"The {what} '{path}' does not exist{remedy and ': '}{remedy}.") from None
    except UnicodeDecodeError:
        raise UserError(f"The {what} '{path}' is not UTF-8 text: save it as UTF-8.") from None


def read_json(path: Path, what: str = "JSON file", remedy: str = "") -> Any:
    """Return the value in a JSON file, as `parse_json` does; raise UserError as it or `read_text` does."""
    return parse_json(read_text(path, what, remedy), f"{what} '{path}'")


def parse_json(text: str, what: str) -> Any:
    """Return the value of JSON; raise UserError with the place at fault, `what` naming what was read."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a character, which no file takes
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"The {what} is not valid JSON ({error.msg}, {place}): correct it.") from None
    except (RecursionError, ValueError):  # as of a number of thousands of digits
        raise UserError(UNREADABLE.format(what)) from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in the order given, whole or not at all; ValueError for NaN, not JSON."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_yaml(path: Path, what: str = "YAML file", remedy: str = "") -> Any:
    """Return the value in a YAML file, as `parse_yaml` does; raise UserError as it or `read_text` does."""
    return parse_yaml(read_text(path, what, remedy), f"{what} '{path}'")


def parse_yaml(text: str, what: str) -> Any:
    """Return the plain value of YAML 1.2 (as DVC reads it: `on` is a word, 1e-3 a number).

    Raises UserError with the line at fault; `what` names there what was read.
    """
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}" if mark else "somewhere"
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"The {what} is not valid YAML ({problem}, {place}): correct it.") from None
    except (RecursionError, ValueError):  # as of a date that does not exist
        raise UserError(UNREADABLE.format(what)) from None
