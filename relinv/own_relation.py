"""A relation of one's own: its folder laid out from a person's pictures, with captions to fill in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from relinv.errors import UserError
from relinv.exemplars import CAPTIONS, IMAGE_SUFFIXES, TO_FILL
from relinv.files import atomic_folder
from relinv.settings import require_name

if TYPE_CHECKING:
    from relinv.validation import Verdict


def lay_out(relation: str, pictures: Path, folder: Path) -> Path:
    """Copy the pictures in `pictures` into `folder`, with a text.json to fill in; return that file.

    Raises UserError where the relation's name is not allowed, there are no pictures, or the folder exists.
    """
    require_name(relation, "relation")
    if not pictures.is_dir():
        raise UserError(f"There is no folder '{pictures}': name the one with your pictures of '{relation}'.")
    found = sorted(path for path in pictures.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"'{pictures}' holds no pictures ({kinds}): put four to ten of '{relation}' there.")
    if folder.exists():
        raise UserError(f"'{folder}' exists already: fill in its {CAPTIONS}, or remove it first.")
    with atomic_folder(folder) as new:
        for path in found:
            shutil.copyfile(path, new / path.name)
        captions = {path.name: [TO_FILL] for path in found}
        (new / CAPTIONS).write_text(json.dumps(captions, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder / CAPTIONS


def next_steps(relation: str, folder: Path, verdict: Verdict, benchmark: Path) -> str:
    """Return what is left to do until a laid-out relation takes part like any other."""
    faults = "".join(f"\n  - {text}" for text in [*verdict.errors, *verdict.warnings])
    return (
        f"'{folder}' holds {verdict.images} pictures. What is left to do:{faults}\n"
        f"Then add the relation to {benchmark}, with the things to try it on:\n"
        f"  {relation}:\n    words: {relation.replace('_', ' ')}\n    asymmetric: true\n"
        "    heads: [cat, dog]\n    tails: [box, cup]\n"
        f"and run: dvc exp run -S 'relations=[{relation}]'\n"
        f"To look for faults again: python -m stages.fetch {relation} && python -m stages.validate {relation}"
    )
