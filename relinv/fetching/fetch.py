"""Exemplars put into the benchmark's layout, all or nothing, and compared with the recorded checksums."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from itertools import islice
from pathlib import Path

from filelock import FileLock

from relinv.benchmark import ENTRY
from relinv.errors import UserError
from relinv.exemplars import CAPTIONS, MASKS, OWN, open_upright, pictures_in, read_captions, read_exemplars
from relinv.fetching.archives import unpack
from relinv.fetching.downloads import ARCHIVE, LISTING, cache_folder
from relinv.fetching.relation_folders import (
    copy_files,
    fault_of,
    manifest_file,
    read_manifest,
    relation_folder,
    whole_folder,
)
from relinv.files import atomic_folder, sha256_file, write_json
from relinv.plugins import find_plugin
from relinv.settings import ExemplarSettings, ExemplarSource

PLACED = Path("data/exemplars/placed")  # where DVC sees a change, and the user what to delete
PART = re.compile(r"-\d{3}$")  # ends the name of one of several zips that Drive made: hug-20251125T101112Z-1-002


def fetch_exemplars(
    relation: str, target: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path
) -> None:
    """Fill the folder `target` with a relation's pictures and text.json from where `source` says.

    A folder of the relation's name in data/exemplars/own, which `relinv new` lays out, comes before any source; then
    what `place_exemplars` stored in the source's place, then what an earlier download left below `scratch`. If `source`
    names a `manifest` folder, the relation's file there records each file's SHA-256: written if missing and all
    pictures can be read, and enforced from then on. If the settings name a `count`, only so many pictures are kept, in
    file-name order. Raises UserError if the exemplars are unavailable, unreadable when they are to be recorded, or
    differ from the record.
    """
    with atomic_folder(target) as folder:
        if (own := OWN / relation).is_dir():
            for path in (OWN, own, own / MASKS):
                if path.is_symlink():  # behind which DVC would see no change
                    raise UserError(f"'{path}' is a link: put the folder itself in its place.")
            copy_files(own, folder)
        else:
            _fill(relation, folder, source, settings, scratch)
        if settings.count is not None and not fault_of(folder):  # of a flawed folder, validation tells all
            _keep_first(settings.count, folder)


def _fill(relation: str, folder: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path) -> None:
    """Fill `folder` from a source, what was placed for it or what it left before, and compare it with its record."""
    plugin = find_plugin("relinv.sources", source.source)
    cache = cache_folder(scratch, source)
    with FileLock(cache / ".lock"):  # relations are fetched in parallel, but an archive of them all only once
        placed = PLACED / cache.name / relation
        if placed.is_dir() and (fault := fault_of(placed)):
            raise UserError(f"'{placed}' is incomplete: complete it, or remove it. {fault}")
        kept = placed if placed.is_dir() else relation_folder(cache, relation)
        if kept is None:
            plugin.fill(relation, folder, source, settings, scratch)
        else:
            copy_files(kept, folder)
        (folder / ENTRY).unlink(missing_ok=True)  # says something of the user's own relations alone
        if wrong := _differences(relation, folder, source):
            remedy = f"Place the right ones, or remove '{placed}'"
            if kept != placed:
                _discard(relation, cache, wrong)
                remedy = "Fetch them again, or set right where they come from"
            raise _off_record(relation, source, wrong, remedy)
        _record(relation, folder, source)


def _keep_first(count: int, folder: Path) -> None:
    """Remove all but the first `count` of a relation's pictures, in file-name order, with their captions and masks."""
    captions = read_captions(folder)
    kept = dict(islice(captions.items(), count))
    if len(kept) == len(captions):
        return
    stems = {Path(name).stem for name in kept}
    masks = [path for path in (folder / MASKS).glob("*.png") if path.stem not in stems]
    # only what lies in the folder: text.json may be a stranger's, and name files elsewhere
    for path in (*(path for path in pictures_in(folder) if path.name not in kept), *masks):
        path.unlink()
    write_json(folder / CAPTIONS, kept)


def place_exemplars(relation: str, given: Path, source: ExemplarSource, scratch: Path) -> None:
    """Store the relation's files found at `given`: in a folder at or below it, or in zips as a browser gets from Drive.

    They replace what `source` has. Raises UserError if they are incomplete, cannot be recorded, differ from the record,
    or would not be used.
    """
    if (OWN / relation).is_dir():
        raise UserError(
            f"'{OWN / relation}' comes before anything that is placed for '{relation}': change the files there, or "
            "remove it."
        )
    if not given.exists():
        raise UserError(f"'{given}' does not exist: name the folder of '{relation}', one that holds it, or its zip.")
    cache = cache_folder(scratch, source)
    with tempfile.TemporaryDirectory() as temporary:
        found = relation_folder(given, relation) or _unzipped(relation, given, Path(temporary))
        with FileLock(cache / ".lock"), atomic_folder(PLACED / cache.name / relation) as folder:
            copy_files(found, folder)
            (folder / ENTRY).unlink(missing_ok=True)
            if wrong := _differences(relation, folder, source):
                raise _off_record(relation, source, wrong, "Place the right ones")
            _record(relation, folder, source)


def _unzipped(relation: str, given: Path, root: Path) -> Path:
    """Unpack below `root` the first zips at `given` that hold the complete relation, and return its folder.

    If none do, raises UserError with what is wrong with each.
    """
    faults = []
    for index, parts in enumerate(_downloads(relation, given)):
        folder = root / str(index) / relation
        folder.mkdir(parents=True)
        try:
            found = [part.name for part in parts if unpack(part, relation, folder)]
        except UserError as error:
            faults.append(f" {error}")
            continue
        fault = fault_of(folder)
        if not fault:
            return folder
        if found:
            faults.append(f" In {', '.join(found)}: {fault}")
    raise UserError(
        f"'{given}' holds no {whole_folder(relation)}, nor a zip of it as a browser downloads it from Google Drive: "
        f"complete it.{''.join(faults)}"
    )


def _downloads(relation: str, given: Path) -> list[list[Path]]:
    """Return the zips at `given`, one list per download: those named after the relation first, latest first."""
    if given.is_file():
        return [[given]]
    parts = defaultdict(list)
    for archive in sorted(given.glob("[!.]*.zip")):
        parts[PART.sub("", archive.stem)].append(archive)
    of_its_name = re.compile(rf"{relation}([-. ].*)?")  # hug-20251125T101112Z, not hugging
    names = sorted(parts, key=lambda name: (bool(of_its_name.fullmatch(name)), name), reverse=True)
    return [parts[name] for name in names]


def _sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: sha256_file(folder / name) for name in names}


def _record(relation: str, folder: Path, source: ExemplarSource) -> None:
    """Write the relation's manifest, if it is to have one and has none."""
    manifest = manifest_file(relation, source)
    if manifest and not manifest.is_file():
        write_json(manifest, _sums(folder))


def _differences(relation: str, folder: Path, source: ExemplarSource) -> dict[str, str]:
    """Return {file: how it differs from the relation's manifest}; before there is one, {file: "unreadable"}.

    What a broken download may have left is not to be recorded.
    """
    if source.manifest is None:
        return {}
    if (known := read_manifest(relation, source)) is None:
        return dict.fromkeys(_unreadable(folder), "unreadable")
    sums = _sums(folder)
    return {
        name: "extra" if name not in known else "missing" if name not in sums else "changed"
        for name in sorted(known.keys() | sums.keys())
        if known.get(name) != sums.get(name)
    }


def _unreadable(folder: Path) -> list[str]:
    """Return the pictures and masks of a relation's folder that cannot be decoded."""
    found = []
    for exemplar in read_exemplars(folder).exemplars:
        for path in filter(None, (exemplar.path, exemplar.mask)):
            try:
                open_upright(path)
            except UserError:
                found.append(path.relative_to(folder).as_posix())
    return found


def _off_record(relation: str, source: ExemplarSource, wrong: dict[str, str], remedy: str) -> UserError:
    manifest = manifest_file(relation, source)
    told = ", ".join(f"{name} ({how})" for name, how in wrong.items())
    if set(wrong.values()) == {"unreadable"}:
        return UserError(f"The exemplars of '{relation}' are damaged: {told}. {remedy}.")
    return UserError(
        f"The exemplars of '{relation}' are not those on record in '{manifest}': {told}. {remedy}; if that is on "
        f"purpose, delete '{manifest}' and run this again."
    )


def _discard(relation: str, cache: Path, wrong: dict[str, str]) -> None:
    """Remove the wrong files from the download, so that they are downloaded again."""
    for kept in list(cache.rglob(f"{relation}/")):
        for name in [*wrong, CAPTIONS]:  # a folder without captions never counts as complete
            (kept / name).unlink(missing_ok=True)
    for of_all_relations in (ARCHIVE, LISTING):
        (cache / of_all_relations).unlink(missing_ok=True)
