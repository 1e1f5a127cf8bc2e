"""The miniature's training pictures: rendered once into chunks, each a pure function of (seed, chunk)."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from relinv.benchmark import Benchmark
from relinv.files import atomic_write_bytes
from relinv.world.captions import caption
from relinv.world.sampling import Mix, sample_scene
from relinv.world.scene import SIDE

CHUNK = 2000
CAPTIONS = 4  # independent unreliable captions of one scene


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes: pictures (scenes, 64, 64, 3) uint8 and, for each, its triplet and captions."""

    images: np.ndarray
    triplets: list[tuple[str, str, str]]
    captions: list[list[str]]


def render_scenes(benchmark: Benchmark, mix: Mix, count: int, *, seed: int, folder: Path, workers: int) -> Scenes:
    """Return `count` training scenes, rendered into `folder` chunk by chunk; finished chunks are not drawn again."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = range(-(-count // CHUNK))
    missing = [chunk for chunk in chunks if not _path(folder, chunk).exists()]
    if missing:
        draw = partial(_render_chunk, benchmark, mix, seed, folder)
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            list(tqdm(pool.imap_unordered(draw, missing), total=len(missing), desc="render scenes", unit="chunk"))
    parts = [_read_chunk(_path(folder, chunk)) for chunk in chunks]
    return Scenes(
        np.concatenate([images for images, _, _ in parts])[:count],
        [tuple(t) for _, triplets, _ in parts for t in triplets][:count],
        [c for _, _, captions in parts for c in captions][:count],
    )


def _path(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:04d}.rgb"


def _render_chunk(benchmark: Benchmark, mix: Mix, seed: int, folder: Path, chunk: int) -> None:
    images = np.empty((CHUNK, SIDE, SIDE, 3), np.uint8)
    triplets, captions = [], []
    for i in range(CHUNK):
        rng = np.random.default_rng((seed, chunk, i))
        scene = sample_scene(benchmark, rng, mix)
        images[i] = np.asarray(scene.paint()[0])
        triplets.append((scene.head, scene.relation, scene.tail))
        captions.append([caption(scene, benchmark, rng) for _ in range(CAPTIONS)])
    text = json.dumps({"triplets": triplets, "captions": captions})
    atomic_write_bytes(_path(folder, chunk).with_suffix(".json"), text.encode())
    atomic_write_bytes(_path(folder, chunk), images.tobytes())


def _read_chunk(path: Path) -> tuple[np.ndarray, list, list]:
    images = np.frombuffer(path.read_bytes(), np.uint8).reshape(CHUNK, SIDE, SIDE, 3)
    record = json.loads(path.with_suffix(".json").read_text())
    return images, record["triplets"], record["captions"]
