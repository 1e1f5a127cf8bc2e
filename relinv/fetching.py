"""Exemplars put into the benchmark's layout, whole or not at all, and compared with the checksums on record."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from relinv.downloads import cache_folder, copy_files, relation_folder
from relinv.errors import UserError
from relinv.exemplars import CAPTIONS
from relinv.files import atomic_folder, read_json, sha256_file, write_json
from relinv.plugins import find_plugin
from relinv.settings import ExemplarSettings, ExemplarSource

OWN = Path("data/exemplars/own")


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
    """Keep the relation's files in the folder `given`, or below it: they take the place of what `source` has.

    Raises UserError where they are not all there.
    """
    found = relation_folder(given, relation)
    if found is None:
        raise UserError(
            f"'{given}' holds no folder '{relation}' with a {CAPTIONS} and every picture this names: complete it."
        )
    cache = cache_folder(scratch, source)
    with FileLock(cache / ".lock"), atomic_folder(cache / relation) as folder:
        copy_files(found, folder)


def _compare(relation: str, folder: Path, manifest: Path, cache: Path) -> None:
    """Hold a relation's files to their manifest, or write it; what is wrong leaves the cache."""
    sums = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    if not manifest.is_file():
        write_json(manifest, sums)
        return
    known = read_json(manifest, "manifest")
    wrong = [name for name in sorted(known.keys() | sums.keys()) if known.get(name) != sums.get(name)]
    if wrong:
        for part in cache.rglob(f"{relation}/*"):
            if part.name in wrong:
                part.unlink()
        (cache / "archive").unlink(missing_ok=True)
        raise UserError(
            f"The exemplars of '{relation}' are not those on record in '{manifest}': {', '.join(wrong)}. Fetch them "
            f"again; if they were changed on purpose, delete '{manifest}' and fetch."
        )
