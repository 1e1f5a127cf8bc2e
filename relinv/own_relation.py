"""The user's own relation: a folder laid out from their pictures, with captions to fill in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from relinv.benchmark import ENTRY, Benchmark
from relinv.errors import UserError
from relinv.exemplars import CAPTIONS, IMAGE_SUFFIXES, TO_FILL, pictures_in
from relinv.files import atomic_folder, atomic_write_text, is_visible, require_utf8, write_json
from relinv.settings import require_name

if TYPE_CHECKING:
    from relinv.results import Verdict

KINDS = ", ".join(sorted(IMAGE_SUFFIXES))
GRID = """# What stands between two things in plain words, and what to try the relation on: each head with each tail.
# asymmetric: whether "HEAD {words} TAIL" and "TAIL {words} HEAD" mean two things.
words: {quoted}
asymmetric: true
heads: [cat, dog]
tails: [box, cup]
"""


def lay_out(relation: str, pictures: Path, folder: Path, benchmark: Benchmark) -> list[str]:
    """Copy the pictures in `pictures` into `folder` with a text.json to fill in; return the names of what was left out.

    A relation that the benchmark lacks also gets a relation.yaml, with a small grid to start from. Raises UserError if
    the relation's name is not allowed, there are no pictures, or the folder exists.
    """
    require_name(relation, "relation")
    if not pictures.is_dir():
        raise UserError(f"There is no folder '{pictures}': name the one with your pictures of '{relation}'.")
    visible = sorted(path for path in pictures.iterdir() if is_visible(path.name))
    for path in visible:
        require_utf8(path.name, f"'{pictures}'")
    found = pictures_in(pictures)
    others = [path.name for path in visible if path not in found]
    if not found:
        there = f" beside {', '.join(others[:10])}" if others else ""
        raise UserError(
            f"'{pictures}' holds no pictures that can be read ({KINDS}){there}: put four to ten of '{relation}' there, "
            "photographs of another kind saved as .jpg or .png."
        )
    if folder.exists():
        raise UserError(f"'{folder}' exists already: fill in its {CAPTIONS}, or remove it first.")
    with atomic_folder(folder) as new:
        for path in found:
            shutil.copyfile(path, new / path.name)
        write_json(new / CAPTIONS, {path.name: [TO_FILL] for path in found})
        if relation not in benchmark.relations:
            words = relation.replace("_", " ")
            atomic_write_text(new / ENTRY, GRID.format(words=words, quoted=json.dumps(words)))
    return others


def next_steps(relation: str, folder: Path, left_out: Sequence[str], verdict: Verdict) -> str:
    """Return what is left to do before a laid-out relation can be used; `left_out` is what `lay_out` returned."""
    faults = "".join(f"\n  - {text}" for text in [*_unread(left_out, folder), *verdict.errors, *verdict.warnings])
    entry = f"  - {ENTRY}: say what stands between two things in plain words, and what to try it on.\n"
    return (
        f"'{folder}' holds {verdict.images} pictures. What is left to do:{faults}\n"
        f"{entry if (folder / ENTRY).is_file() else ''}"
        f"Then run: dvc exp run -S 'relations=[{relation}]'\n"
        "A judge that was trained on a few relations, as the miniature's, cannot tell another: there look at the "
        "pictures, not at accuracies.\n"
        f"To look for faults again: python -m stages.fetch {relation} && python -m stages.validate {relation}\n"
        "To have the former results back: relinv restore"
    )


def _unread(names: Sequence[str], folder: Path) -> list[str]:
    """Return what to do about files that were left out, [] if none were: some may be photographs."""
    if not names:
        return []
    return [
        f"{', '.join(names)}: left out, because only {KINDS} are read. Save photographs among them as .png or .jpg and "
        f"add them to '{folder}' and its {CAPTIONS}."
    ]
