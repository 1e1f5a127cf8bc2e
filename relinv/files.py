"""Reading and writing files: results appear whole or not at all, and a bad file is named in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from relinv.errors import UserError, is_out_of_memory, reason

LEFT_BY_WINDOWS = {"thumbs.db", "ehthumbs.db", "desktop.ini"}  # in folders of pictures; lower case
UNREADABLE = "The {} nests too deeply, or holds a value that cannot be read: correct it."


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` when the block succeeds; its folder is made.

    A reader sees the old file or the whole new one. If writing fails, an OSError that names `path` is raised, even
    if a library's own error hid it.
    """
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # with the process id: writers never share it
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())  # else a power cut could leave the name of a file without its content
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save hides a failed write in a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        # a full disk's error names no file, and others name the temporary one
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises UserError where the system lets none be made, such as below /proc."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:
        raise UserError(f"No folder can be made as '{path}': name another place.") from None


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, as `atomic_file` does."""
    with atomic_file(path) as stream:
        stream.write(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with unix line ends, whole or not at all."""
    atomic_write_bytes(path, text.encode("utf-8"))


def is_visible(name: str) -> bool:
    """Return whether a file of that name is the user's: neither hidden nor one that Windows makes by itself."""
    return not name.startswith(".") and name.lower() not in LEFT_BY_WINDOWS


def require_utf8(name: str, holder: str, remedy: str = "rename that file") -> None:
    """Raise UserError if a name in `holder` is not UTF-8, as of files from old cameras and archives."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode("utf-8")
        raise UserError(f"{holder} holds a name that is not UTF-8, '{shown}': {remedy}.") from None


@contextmanager
def opened_picture(path: Path, what: str = "picture", remedy: str = "replace it") -> Iterator[Image.Image]:
    """Yield an opened picture, whose pixels are read on demand.

    Any failure to open it or inside the block, except a lack of memory, becomes a UserError: `what` names the
    picture's role, `remedy` what to do. Pillow's limit to the number of pixels holds; its warning at half of it is
    silenced, since photographs have so many.
    """
    quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
    try:
        with quiet, Image.open(path) as opened:
            yield opened
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"The {what} '{path}' has too many pixels, more than {limit:,}: save it smaller.") from error
    except Exception as error:  # a damaged file can make a decoder raise anything
        if is_out_of_memory(error):
            raise
        raise UserError(f"The {what} '{path}' cannot be read ({reason(error)}): {remedy}.") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that replaces it and its content when the block succeeds."""
    _make_folder(path.parent)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    new, old = workspace / "new", workspace / "old"
    try:
        new.mkdir()  # not the 0700 folder of mkdtemp itself: results keep the usual permissions
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def sha256_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return the hex SHA-256 of a value as JSON, whatever the order of the names in it.

    default: returns what stands for a value that JSON does not have; without it, such a value is a TypeError.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=default).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_folder(path: Path) -> str:
    """Return one hex SHA-256 over the relative names and bytes of all files below `path`, in name order."""
    return sha256_files(path, sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()))


def sha256_files(root: Path, names: Iterable[str], hash_of: Callable[[Path], str] = sha256_file) -> str:
    """Return one hex SHA-256 over the `names` and bytes of files below `root`, in the order given.

    hash_of: returns each file's own hash.
    """
    lines = [f"{hash_of(root / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def code_hash(root: Path, parts: Iterable[str]) -> str:
    """Return one hex SHA-256 over the code at `parts` of `root`: Python and YAML files, and all those below folders."""
    files = [path for part in parts for path in ((root / part).rglob("*") if (root / part).is_dir() else [root / part])]
    names = sorted(
        path.relative_to(root).as_posix() for path in files if path.suffix in {".py", ".yaml"} and path.is_file()
    )
    return sha256_files(root, names)


def read_text(path: Path, what: str = "file", remedy: str = "") -> str:
    """Return the UTF-8 text of `path`, without the byte order mark that some editors add.

    Raises UserError if it is missing, is not UTF-8, or has a path that no file can have: `what` names the file's role,
    `remedy` says what to do if it is missing.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"The {what} '{path}' does not exist{remedy and ': '}{remedy}.") from None
    except UnicodeDecodeError:
        raise UserError(f"The {what} '{path}' is not UTF-8 text: save it as UTF-8.") from None
    except ValueError:  # its path holds a NUL, which YAML can write
        raise UserError(f"The {what} has a path that no file can have, {str(path)!r}: correct it.") from None


def read_json(path: Path, what: str = "JSON file", remedy: str = "") -> Any:
    """Return the value in a JSON file; raises UserError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, what, remedy), f"{what} '{path}'")


def parse_json(text: str, what: str) -> Any:
    """Return the value of JSON text; if it is invalid, UserError calls it `what` and names the place at fault.

    An object that holds a name twice is refused, because of two values all readers of JSON keep only the last.
    """

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object's values by name."""
        found = dict(pairs)
        if len(found) < len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise UserError(f"The {what} holds '{twice}' twice: join the two, or remove one.")
        return found

    try:
        value = json.loads(text, object_pairs_hook=each_once)
        if "\\ud" in text.lower():  # half of a surrogate pair, which no file takes
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"The {what} is not valid JSON ({error.msg}, {place}): correct it.") from None
    except (RecursionError, ValueError):  # such as for a number with thousands of digits
        raise UserError(UNREADABLE.format(what)) from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in the order given, whole or not at all; ValueError for NaN, not in JSON."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_yaml(path: Path, what: str = "YAML file", remedy: str = "") -> Any:
    """Return the value in a YAML file; raises UserError as `read_text` and `parse_yaml` do."""
    return parse_yaml(read_text(path, what, remedy), f"{what} '{path}'")


def parse_yaml(text: str, what: str) -> Any:
    """Return the plain value of YAML 1.2 text (as DVC reads it: `on` is a word, 1e-3 a number).

    If it is invalid, raises UserError, which calls it `what` and names the line at fault.
    """
    from ruamel.yaml import YAMLError

    try:
        return deepcopy(_loaded_yaml(text))  # a copy: the caller may change it
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}" if mark else "somewhere"
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"The {what} is not valid YAML ({problem}, {place}): correct it.") from None
    except (RecursionError, ValueError):  # such as for a date that does not exist
        raise UserError(UNREADABLE.format(what)) from None


@lru_cache(maxsize=32)
def _loaded_yaml(text: str) -> Any:
    """Return what YAML text holds, kept: checks and studies ask for the same few files hundreds of times."""
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(text)
