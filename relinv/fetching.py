"""Exemplars put into the benchmark's layout, whole or not at all, and compared with the checksums on record."""

from __future__ import annotations

import tempfile
from pathlib import Path

from filelock import FileLock

from relinv.archives import unpack
from relinv.checking import parse
from relinv.downloads import cache_folder, copy_files, relation_folder
from relinv.errors import UserError
from relinv.exemplars import CAPTIONS, OWN
from relinv.files import atomic_folder, read_json, sha256_file, write_json
from relinv.plugins import find_plugin
from relinv.settings import ExemplarSettings, ExemplarSource


def fetch_exemplars(
    relation: str, target: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path
) -> None:
    """Fill the folder `target` with a relation's pictures and text.json from where `source` says.

    A folder of the relation's name in data/exemplars/own, which `relinv new` lays out, comes before any source; then
    what is kept below `scratch` in the source's place, by `place_exemplars` or from a download. Where `source` names a
    `manifest` folder, its file of the relation holds each file's SHA-256: written when there is none, and kept to ever
    after. Raises UserError where the exemplars are not to be had, or differ from the record.
    """
    plugin = find_plugin("relinv.sources", source.source)
    with atomic_folder(target) as folder:
        if (OWN / relation).is_dir():
            copy_files(OWN / relation, folder)
            return
        cache = cache_folder(scratch, source)
        with FileLock(cache / ".lock"):  # relations are fetched side by side, an archive for all of them once
            kept = relation_folder(cache, relation)
            if kept is None:
                plugin.fill(relation, folder, source, settings, scratch)
            else:
                copy_files(kept, folder)
            if source.manifest is not None:
                _compare(relation, folder, source.manifest / f"{relation}.json", cache)


def place_exemplars(relation: str, given: Path, source: ExemplarSource, scratch: Path) -> None:
    """Keep the relation's files in the folder `given`, below it, or in zips there as a browser gets a Drive folder.

    They take the place of what `source` has. Raises UserError where they are not all there, or as `unpack` does.
    """
    with tempfile.TemporaryDirectory() as temporary:
        found = relation_folder(given, relation) or _unzipped(relation, given, Path(temporary))
        if found is None:
            raise UserError(
                f"'{given}' holds no folder '{relation}' with a {CAPTIONS} and every picture this names, nor a zip of "
                f"it, '{relation}-*.zip', as a browser downloads it from Google Drive: complete it."
            )
        cache = cache_folder(scratch, source)
        with FileLock(cache / ".lock"), atomic_folder(cache / relation) as folder:
            copy_files(found, folder)


def _unzipped(relation: str, given: Path, root: Path) -> Path | None:
    """Return the relation's folder, made below `root` of its zips in `given`; None where it is not whole."""
    folder = root / relation
    folder.mkdir()
    for archive in sorted(given.glob(f"{relation}[-. ]*zip")):  # hug-20251125T101112Z-001.zip, not hugging.zip
        unpack(archive, relation, folder)
    return relation_folder(root, relation)


def _compare(relation: str, folder: Path, manifest: Path, cache: Path) -> None:
    """Hold a relation's files to their manifest, or write it; what is wrong leaves the cache."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    sums = {name: sha256_file(folder / name) for name in names}
    if not manifest.is_file():
        write_json(manifest, sums)
        return
    known = parse(dict[str, str], read_json(manifest, "manifest"), "", manifest)
    wrong = [name for name in sorted(known.keys() | sums.keys()) if known.get(name) != sums.get(name)]
    if wrong:
        for kept in list(cache.rglob(f"{relation}/")):
            for name in [*wrong, CAPTIONS]:  # without its captions no folder is taken for whole
                (kept / name).unlink(missing_ok=True)
        (cache / "archive").unlink(missing_ok=True)
        raise UserError(
            f"The exemplars of '{relation}' are not those on record in '{manifest}': {', '.join(wrong)}. Fetch them "
            f"again; if they were changed on purpose, delete '{manifest}' and fetch."
        )
