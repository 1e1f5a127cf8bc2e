"""Objects that the miniature's base has never seen, and exemplar folders of them in the benchmark's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from relinv.errors import UserError
from relinv.files import atomic_file, atomic_write_text
from relinv.world.paint import SCENE, scaled, sprite, stand
from relinv.world.scene import BACKGROUNDS, SIDE, backdrop

FOLDER = Path(__file__).resolve().parents[2] / "data" / "miniature" / "objects"
COUNT = 5  # pictures of an object, each before another backdrop
PREFIXES = ("photo of", "picture of")


def write_object_exemplars(name: str, folder: Path, *, seed: int) -> None:
    """Write 0.png … 4.png of one object and text.json with several templates each into `folder`.

    The pictures differ in backdrop, size and place; templates name the backdrop, so that the token need not. Raises
    UserError for an object that is not there.
    """
    if not (FOLDER / f"{name}.webp").is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.webp")))
        raise UserError(f"The miniature has no object '{name}': there are {known}.")
    rng = np.random.default_rng((seed, *name.encode()))
    texts = {}
    for index, background in enumerate(rng.permutation(list(BACKGROUNDS))[:COUNT]):
        with atomic_file(folder / f"{index}.png") as stream:
            paint_object(name, str(background), rng).save(stream, "PNG")
        bare = f"{{}} {BACKGROUNDS[background]}"
        texts[f"{index}.png"] = [bare, *(f"{prefix} {bare}" for prefix in PREFIXES)]
    atomic_write_text(folder / "text.json", json.dumps(texts, indent=2) + "\n")


def paint_object(name: str, background: str, rng: np.random.Generator) -> Image.Image:
    """Return the object alone before a backdrop, 64 × 64 RGB, its size and place by `rng`."""
    canvas = backdrop(background, rng)
    picture = scaled(sprite(name, FOLDER), rng.uniform(0.5, 0.75) * SCENE)
    stand(canvas, picture, rng.uniform(0.38, 0.62) * SCENE, rng.uniform(0.82, 0.95) * SCENE)
    return canvas.reduce(SCENE // SIDE)
