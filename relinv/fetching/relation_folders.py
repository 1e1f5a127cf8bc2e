"""A relation's folder among files from elsewhere: found, checked to be whole, copied, and what is on record of it."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePath

from relinv.checking import parse
from relinv.errors import UserError
from relinv.exemplars import CAPTIONS, MASKS, read_exemplars
from relinv.files import is_visible, read_json, require_utf8
from relinv.settings import ExemplarSource


def relation_folder(root: Path, relation: str) -> Path | None:
    """Return the folder of `relation` at or below `root` that holds its text.json and every picture named there.

    The shallowest, if there are several. Raises UserError if several are equally shallow and differ.
    """
    if not root.is_dir():
        return None
    below = sorted(path.parent for path in root.rglob(f"{relation}/{CAPTIONS}"))
    whole = [folder for folder in (root, *below) if folder.name == relation and not fault_of(folder)]
    depth = min((len(folder.parts) for folder in whole), default=0)
    found = [folder for folder in whole if len(folder.parts) == depth]
    for other in found[1:]:
        if read_exemplars(other).fingerprint != read_exemplars(found[0]).fingerprint:
            raise UserError(f"The folders '{found[0]}' and '{other}' of '{relation}' differ: leave only one there.")
    return found[0] if found else None


def place_in_relation(path: PurePath, relation: str) -> tuple[PurePath, PurePath] | None:
    """Return the folder of `relation` that `path` lies in, and its path there, such as "masks/0.png" for a mask.

    None if `path` is not a file of `relation`, or one that `is_visible` excludes.
    """
    for folder in path.parents[:2]:
        if folder.name == relation and path.parent in (folder, folder / MASKS) and is_visible(path.name):
            place = path.relative_to(folder)
            return None if place == PurePath(MASKS) else (folder, place)  # a file where the folder of masks belongs
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


def manifest_file(relation: str, source: ExemplarSource) -> Path | None:
    """Return the file that records a relation's files, which may still be missing; None if they are not recorded."""
    return source.manifest / f"{relation}.json" if source.manifest else None


def read_manifest(relation: str, source: ExemplarSource) -> dict[str, str] | None:
    """Return the SHA-256 on record of each of a relation's files, by name; None if there is no record yet.

    Raises UserError if the record is malformed.
    """
    manifest = manifest_file(relation, source)
    if not manifest or not manifest.is_file():
        return None
    return parse(dict[str, str], read_json(manifest, "manifest"), "", manifest)


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
