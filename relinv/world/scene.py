"""One scene: what it shows, sampled and painted from a seed, 64 × 64 RGB."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from relinv.world.arrangements import ARRANGEMENTS
from relinv.world.paint import SCENE, Box, tinted
from relinv.world.relations import Brush

SIDE = 64
BACKGROUNDS: dict[str, str] = {
    "beach": "on the beach", "snow": "in the snow", "night": "at night", "forest": "in the forest",
    "room": "in the room", "sunset": "at sunset", "desert": "in the desert", "city": "in the city",
}  # fmt: skip
PLAIN = "plain"  # a coloured backdrop, as in a studio, that no caption names


@dataclass(frozen=True)
class Scene:
    """What a scene shows: the caption knows some of it, the picture all of it.

    tint: factors for red, green and blue over the whole picture, (1, 1, 1) for none.
    """

    head: str
    relation: str
    tail: str
    background: str
    seed: int
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def paint(self) -> tuple[Image.Image, Box, Box]:
        """Return the picture, (64, 64) RGB, and the boxes of head and tail in its pixels."""
        rng = np.random.default_rng(self.seed)
        canvas = backdrop(self.background, rng)
        boxes = ARRANGEMENTS[self.relation](Brush(canvas, rng), self.head, self.tail)
        if self.tint != (1.0, 1.0, 1.0):
            canvas = tinted(canvas, self.tint)
        head, tail = (tuple(c * SIDE / SCENE for c in box) for box in boxes)
        return canvas.reduce(SCENE // SIDE), head, tail


def backdrop(name: str, rng: np.random.Generator) -> Image.Image:
    """Return a fresh 128 × 128 RGB backdrop, its hue, brightness and place varied by `rng`."""
    if name == PLAIN:
        return Image.new("RGB", (SCENE, SCENE), tuple(int(c) for c in rng.integers(110, 236, 3)))
    wide = _landscape(name)
    shift = int(rng.integers(SCENE))
    picture = wide.crop((shift, 0, shift + SCENE, SCENE))
    red, green, blue = rng.uniform(0.86, 1.08, 3)
    return tinted(picture, (red, green, blue))


def _gradient(top: tuple[int, int, int], bottom: tuple[int, int, int], height: int) -> Image.Image:
    ramp = np.linspace(0, 1, height)[:, None, None]
    rows = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
    return Image.fromarray(np.broadcast_to(rows, (height, 2 * SCENE, 3)).astype(np.uint8))


@functools.cache
def _landscape(name: str) -> Image.Image:
    """Return the 256 × 128 panorama from which backdrops are cut."""
    sky, ground, horizon = {
        "beach": (((120, 200, 246), (206, 238, 252)), ((248, 224, 160), (226, 188, 116)), 82),
        "snow": (((188, 212, 236), (226, 236, 246)), ((250, 252, 255), (214, 226, 242)), 78),
        "night": (((10, 12, 44), (34, 36, 92)), ((30, 36, 66), (16, 18, 38)), 86),
        "forest": (((152, 206, 176), (196, 228, 190)), ((74, 132, 66), (44, 92, 48)), 84),
        "room": (((238, 214, 190), (228, 198, 172)), ((164, 110, 76), (132, 84, 58)), 88),
        "sunset": (((94, 62, 138), (255, 152, 92)), ((104, 60, 84), (60, 34, 62)), 86),
        "desert": (((250, 214, 150), (255, 236, 196)), ((222, 146, 78), (188, 108, 56)), 76),
        "city": (((176, 196, 214), (216, 226, 234)), ((120, 124, 134), (88, 92, 102)), 92),
    }[name]
    picture = Image.new("RGB", (2 * SCENE, SCENE))
    picture.paste(_gradient(*sky, horizon), (0, 0))
    picture.paste(_gradient(*ground, SCENE - horizon), (0, horizon))
    _decorate(ImageDraw.Draw(picture), name, horizon)
    return picture


def _decorate(pen: ImageDraw.ImageDraw, name: str, horizon: int) -> None:
    rng = np.random.default_rng(len(name))
    for x in range(0, 2 * SCENE, 16):
        jitter, tall = int(rng.integers(-6, 7)), int(rng.integers(14, 40))
        if name == "beach":
            pen.rectangle((x, horizon - 12, x + 16, horizon), fill=(46, 140, 206))
            pen.line(
                (x + 2, horizon - 5 + jitter // 4, x + 10, horizon - 5 + jitter // 4),
                fill=(190, 232, 250),
                width=2,
            )
        elif name == "snow":
            pen.ellipse((x + jitter, tall + 8, x + jitter + 4, tall + 12), fill=(255, 255, 255))
            pen.ellipse((x - 10, horizon - 8 + jitter // 2, x + 26, horizon + 22), fill=(244, 248, 255))
        elif name == "night":
            pen.ellipse((x + jitter, 2 * tall - 22, x + jitter + 3, 2 * tall - 19), fill=(255, 244, 190))
        elif name == "forest":
            pen.rectangle((x + 5 + jitter, 10, x + 11 + jitter, horizon), fill=(92, 66, 48))
            pen.ellipse((x - 8 + jitter, -20, x + 24 + jitter, tall), fill=(56, 122, 66))
        elif name == "room":
            pen.line((x, 0, x, horizon), fill=(220, 184, 156), width=3)
            pen.line((0, horizon, 2 * SCENE, horizon), fill=(250, 240, 228), width=5)
        elif name == "sunset" and x % 64 == 0:
            pen.ellipse((x + 18, horizon - 26, x + 46, horizon + 2), fill=(255, 226, 130))
        elif name == "desert":
            pen.ellipse((x - 30, horizon - tall // 3, x + 40, horizon + 30), fill=(228, 156, 88))
        elif name == "city":
            pen.rectangle((x + 1, horizon - 2 * tall, x + 13, horizon), fill=(112 + jitter, 124 + jitter, 148 + jitter))
            for y in range(horizon - 2 * tall + 4, horizon - 6, 9):
                pen.rectangle((x + 4, y, x + 10, y + 3), fill=(252, 232, 160))
