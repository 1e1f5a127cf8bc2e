"""A model's fingerprint: one hash over its files. Gigabytes are read for it once, not at every start of a stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from relinv.files import sha256_file, sha256_files, write_json
from relinv.settings import JudgeSettings

KNOWN = Path(".scratch/hashes.json")  # git-ignored: size, modification time and hash of each large file seen
LARGE = 2**26  # bytes; smaller files are read in a moment
JUDGE_FILES = {".json", ".jinja", ".txt", ".model", ".safetensors", ".bin"}  # configuration, tokenizer, weights


def fingerprint(folder: Path, files: Sequence[Path]) -> str:
    """Return one hex SHA-256 over the names and bytes of a model's `files` below `folder`, in the order given."""
    return sha256_files(folder, [path.relative_to(folder).as_posix() for path in files], hash_of)


def judge_fingerprint(judge: JudgeSettings, root: Path = Path()) -> str:
    """Return what tells a judge from others: a hash of its folder's (below `root`) files, or its name and tag.

    If it names a vision-language model, that one's hash follows, or its hub id and revision.
    """
    own, vqa = _of_folder(root / judge.model, f"{judge.model}/{judge.pretrained}"), judge.vqa
    if vqa is None:
        return own
    other = _of_folder(root / vqa.model, f"{vqa.model}@{vqa.revision or 'main'}")
    return f"{own} + {other}"


def _of_folder(folder: Path, name: str) -> str:
    """Return the fingerprint of a judge's folder, or `name` if there is no such folder."""
    if not folder.is_dir():
        return name
    return fingerprint(folder, sorted(path for path in folder.iterdir() if path.suffix in JUDGE_FILES))


def hash_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes; that of a large file is remembered until the file changes."""
    path = path.resolve()
    state = path.stat()
    if state.st_size < LARGE:
        return sha256_file(path)
    known = _known()
    match known.get(str(path)):
        case [state.st_size, state.st_mtime_ns, str(found)]:
            return found
    found = sha256_file(path)
    with suppress(OSError):  # such as in another's checkout, where nothing can be written
        write_json(KNOWN, _known() | {str(path): [state.st_size, state.st_mtime_ns, found]})
    return found


def _known() -> dict[str, Any]:
    """Return what is remembered, or nothing if its file is missing or damaged."""
    try:
        found = json.loads(KNOWN.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
