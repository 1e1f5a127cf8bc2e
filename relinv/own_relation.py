"""The user's own relation: a folder laid out from their pictures, with captions to fill in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from relinv.benchmark import ENTRY, Benchmark, read_own_relation
from relinv.errors import UserError
from relinv.exemplars import CAPTIONS, IMAGE_SUFFIXES, MASKS, OWN, TO_FILL, pictures_in, read_captions
from relinv.files import atomic_folder, atomic_write_text, is_visible, require_utf8, write_json
from relinv.results import Verdict
from relinv.settings import require_name

KINDS = ", ".join(sorted(IMAGE_SUFFIXES))
OTHER_KINDS = frozenset({".arw", ".avif", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".nef",
                         ".orf", ".pef", ".psd", ".raf", ".rw2"})  # fmt: skip  # of photographs that are not read
GRID = """# What stands between two things in plain words, and what to try the relation on: each head with each tail.
# asymmetric: whether "HEAD {words} TAIL" and "TAIL {words} HEAD" mean two things.
words: {quoted}
asymmetric: true
heads: [cat, dog]
tails: [box, cup]
"""


def lay_out(relation: str, pictures: Path, folder: Path, benchmark: Benchmark) -> list[str]:
    """Copy the pictures in `pictures` into `folder` with a text.json to fill in; return the names of what was left out.

    A text.json beside the pictures gives the captions it has; masks are copied too. A relation that the benchmark lacks
    also gets the relation.yaml beside them, or one with a small grid to start from. Raises UserError if the relation's
    name is not allowed, there are no pictures, their text.json or relation.yaml cannot be used, or the folder exists.
    """
    require_name(relation, "relation")
    if not pictures.is_dir():
        raise UserError(f"There is no folder '{pictures}': name the one with your pictures of '{relation}'.")
    visible = sorted(path for path in pictures.iterdir() if is_visible(path.name))
    for path in visible:
        require_utf8(path.name, f"'{pictures}'")
    found = pictures_in(pictures)
    is_new = relation not in benchmark.relations  # so that it needs a relation.yaml
    taken = {CAPTIONS, MASKS} | ({ENTRY} if is_new else set())
    others = [path.name for path in visible if path not in found and path.name not in taken]
    if not found:
        there = f" beside {', '.join(others[:10])}" if others else ""
        raise UserError(
            f"'{pictures}' holds no pictures that can be read ({KINDS}){there}: put four to ten of '{relation}' there, "
            "photographs of another kind saved as .jpg or .png."
        )
    if folder.exists():
        raise UserError(f"'{folder}' exists already: fill in its {CAPTIONS}, or move it elsewhere first.")
    captions = read_captions(pictures) if (pictures / CAPTIONS).exists() else {}
    has_entry = is_new and (pictures / ENTRY).is_file()
    if has_entry:
        read_own_relation(pictures / ENTRY)
    masks = sorted(path for path in (pictures / MASKS).glob("*") if path.is_file() and is_visible(path.name))
    with atomic_folder(folder) as new:
        for path in found:
            shutil.copyfile(path, new / path.name)
        write_json(new / CAPTIONS, {path.name: [TO_FILL] for path in found} | captions)
        for mask in masks:
            (new / MASKS).mkdir(exist_ok=True)
            shutil.copyfile(mask, new / MASKS / mask.name)
        if has_entry:
            shutil.copyfile(pictures / ENTRY, new / ENTRY)
        elif is_new:
            atomic_write_text(new / ENTRY, _first_grid(relation))
    return others


def _first_grid(relation: str) -> str:
    """Return the text of a relation.yaml to start from."""
    words = relation.replace("_", " ")
    return GRID.format(words=words, quoted=json.dumps(words))


def next_steps(relation: str, folder: Path, base: str, left_out: Sequence[str], verdict: Verdict) -> str:
    """Return what is left to do before a laid-out relation can be used; `left_out` is what `lay_out` returned."""
    photographs = [name for name in left_out if Path(name).suffix.lower() in OTHER_KINDS]
    others = [name for name in left_out if name not in photographs]
    to_do = [*verdict.errors, *verdict.warnings]
    if photographs:
        unread = f"{', '.join(photographs)}: left out, because only {KINDS} are read. Save them as .png or .jpg and add"
        to_do.insert(0, f"{unread} them to '{folder}' and its {CAPTIONS}.")
    if (folder / ENTRY).is_file() and (folder / ENTRY).read_bytes() == _first_grid(relation).encode():
        to_do.append(f"{ENTRY}: say what stands between two things in plain words, and what to try it on.")
    without = f", without {', '.join(others)}" if others else ""
    listed = "".join(f"\n  - {text}" for text in to_do) or " nothing."
    return (
        f"'{folder}' holds {verdict.images} pictures{without}. What is left to do:{listed}\n"
        f"Then run: dvc exp run -S 'relations=[{relation}]' (with --temp or --queue, add -C {OWN})\n"
        f"It is learned with the base in use, '{base}': for another, set `base` in params.yaml first.\n"
        "A judge that was trained on a few relations, as the miniature's, cannot tell another: there look at the "
        "pictures, not at accuracies.\n"
        f"To look for faults again: python -m stages.fetch {relation} && python -m stages.validate {relation}\n"
        "To have the former results back in place of this relation's (export its token first): relinv restore"
    )
