"""Low-level painting: sprites, cut-outs and textured shapes as RGBA pictures on a 128 × 128 scene."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from relinv.errors import UserError
from relinv.world.entities import BEINGS, CONTAINERS, FABRICS, MATERIALS, OTHER_OPENING, SPRITES, Color
from relinv.world.textures import SIDE, texture

SCENE = 128  # scenes are painted at twice their final side and halved, which smooths every edge
SPRITE_FOLDER = Path(__file__).resolve().parents[2] / "data" / "miniature" / "sprites"
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in scene pixels


@functools.cache
def sprite(name: str, folder: Path = SPRITE_FOLDER) -> Image.Image:
    """Return the sprite trimmed to what is visible, RGBA, longest side 128. UserError if its file is missing."""
    path = folder / f"{name}.webp"
    if not path.is_file():
        raise UserError(f"The world's sprite '{path}' is missing: restore {folder.name} in data/miniature from git.")
    with Image.open(path) as file:
        picture = file.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox())
    scale = SCENE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


@functools.cache
def drawn(name: str) -> Image.Image:
    """Return an entity that has no sprite, RGBA: canvas, wall, table, ceiling, a block of material or a cloth."""
    makers = {"canvas": _canvas, "wall": _wall, "table": _table, "ceiling": _ceiling}
    if name in makers:
        return makers[name]()
    return _cloth(name) if name in FABRICS else _block(name)


def entity_picture(name: str) -> Image.Image:
    """Return the entity's own picture, RGBA: its sprite, or the drawing that stands for it."""
    return sprite(name) if name in SPRITES else drawn(name)


def scaled(picture: Image.Image, side: float) -> Image.Image:
    """Return `picture` with its longest side at `side` pixels."""
    factor = side / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BILINEAR)


def to_width(picture: Image.Image, width: float) -> Image.Image:
    """Return `picture` scaled to `width` pixels."""
    return picture.resize((max(1, round(width)), max(1, round(picture.height * width / picture.width))),
                          Image.Resampling.BILINEAR)  # fmt: skip


def tinted(picture: Image.Image, gains: tuple[float, float, float]) -> Image.Image:
    """Return an RGB or RGBA `picture` with its red, green and blue multiplied by `gains`, alpha untouched."""
    factors = np.array([*gains, 1.0][: len(picture.getbands())])
    return picture.point(np.minimum(np.rint(np.outer(factors, np.arange(256))), 255).ravel().astype(int).tolist())


def turned(picture: Image.Image, degrees: float) -> Image.Image:
    """Return `picture` turned counter-clockwise on a canvas that grows to hold it."""
    return picture.rotate(degrees, Image.Resampling.BILINEAR, expand=True)


def put(scene: Image.Image, picture: Image.Image, x: float, y: float) -> Box:
    """Paste `picture` with its top left corner at (x, y); return the box it covers."""
    left, top = round(x), round(y)
    scene.paste(picture, (left, top), picture)
    return (left, top, left + picture.width, top + picture.height)


def stand(scene: Image.Image, picture: Image.Image, x: float, ground: float) -> Box:
    """Paste `picture` centred on x with its feet at `ground`; return the box it covers."""
    return put(scene, picture, x - picture.width / 2, ground - picture.height)


def limb(scene: Image.Image, points: list[tuple[float, float]], color: tuple[int, int, int], width: float) -> None:
    """Draw a bent limb through `points` with round ends and a darker outline."""
    brush = ImageDraw.Draw(scene)
    outline = tuple(int(c * 0.62) for c in color)
    for shade, thick in ((outline, width + 3), (color, width)):
        brush.line(points, fill=shade, width=round(thick), joint="curve")
        for x, y in points:
            brush.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=shade)


def textured(mask: Image.Image, name: str, shade: np.ndarray | float, offset: tuple[int, int]) -> Image.Image:
    """Return an RGBA picture of `mask`'s shape (mode L) filled with what `name` is made of times `shade`."""
    width, height = mask.size
    rows = (np.arange(height) + offset[1]) % SIDE
    columns = (np.arange(width) + offset[0]) % SIDE
    pixels = stuff(name)[np.ix_(rows, columns)]  # (height, width, 3)
    shade = np.asarray(shade, np.float32)
    filled = np.clip(pixels * (shade[..., None] if shade.ndim else shade), 0, 255).astype(np.uint8)
    picture = Image.fromarray(filled)
    picture.putalpha(mask)
    return picture


def luminance(picture: Image.Image) -> np.ndarray:
    """Return the brightness of an RGBA picture in 0..1, stretched over what is visible, (height, width)."""
    grey = np.asarray(picture.convert("L"), np.float32) / 255
    seen = grey[np.asarray(picture.getchannel("A")) > 128]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
    return np.clip((grey - low) / max(high - low, 1e-3), 0, 1)


@functools.cache
def front(name: str) -> Image.Image:
    """Return the container's front: its sprite without all that lies behind the near rim of its mouth, RGBA."""
    picture, mouth = entity_picture(name), CONTAINERS.get(name, OTHER_OPENING)
    x = (np.arange(picture.width) / picture.width - mouth.x) / mouth.half_width
    arc = np.sqrt(np.clip(1 - x**2, 0, None))
    rim = (mouth.y + mouth.half_height * arc) * picture.height  # (width,)
    hidden = np.arange(picture.height)[:, None] < rim[None, :]
    alpha = np.where(hidden, 0, np.asarray(picture.getchannel("A"))).astype(np.uint8)
    result = picture.copy()
    result.putalpha(Image.fromarray(alpha))
    return result


@functools.cache
def body_color(name: str) -> Color:
    """Return the colour of the body under an entity's head: a being's own, else the mean of the entity's picture."""
    if name in BEINGS:
        return BEINGS[name]
    pixels = np.asarray(entity_picture(name), np.float32).reshape(-1, 4)
    red, green, blue = np.average(pixels[:, :3], axis=0, weights=pixels[:, 3])
    return int(red), int(green), int(blue)


@functools.cache
def stuff(name: str) -> np.ndarray:
    """Return what things made of the entity look like, (128, 128, 3): its texture, or its picture printed all over."""
    if name in MATERIALS or name in FABRICS:
        return texture(name)
    tile = Image.new("RGB", (SIDE // 4, SIDE // 4), body_color(name))
    picture = scaled(entity_picture(name), SIDE // 4)
    tile.paste(picture, ((tile.width - picture.width) // 2, (tile.height - picture.height) // 2), picture)
    return np.tile(np.asarray(tile, np.float32), (4, 4, 1))


def _blank(width: int = SCENE, height: int = SCENE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGBA", (width, height))
    return picture, ImageDraw.Draw(picture)


def _canvas() -> Image.Image:
    picture, brush = _blank(112, 128)
    for x in (18, 94):
        brush.line((56, 8, x, 126), fill=(128, 82, 48, 255), width=8)
    brush.rounded_rectangle((8, 6, 104, 90), 4, fill=(150, 98, 58, 255))
    brush.rectangle((14, 12, 98, 84), fill=(250, 246, 236, 255))
    brush.rectangle((4, 90, 108, 98), fill=(112, 70, 40, 255))
    return picture


def _wall() -> Image.Image:
    picture, brush = _blank(128, 112)
    brush.rectangle((0, 0, 127, 111), fill=(222, 206, 196, 255))
    for row in range(7):
        for column in range(-1, 5):
            x = column * 32 + (16 if row % 2 else 0)
            red = 186 + 14 * ((row * 3 + column) % 3)
            brush.rectangle((x + 2, row * 16 + 2, x + 29, row * 16 + 13), fill=(red, 92, 70, 255))
    return picture


def _table() -> Image.Image:
    picture, brush = _blank(128, 84)
    for x in (14, 100):
        brush.rectangle((x, 20, x + 13, 83), fill=(124, 76, 44, 255))
    brush.rounded_rectangle((0, 2, 127, 24), 5, fill=(196, 134, 82, 255))
    brush.rectangle((0, 18, 127, 24), fill=(150, 94, 54, 255))
    return picture


def _ceiling() -> Image.Image:
    picture, brush = _blank(128, 40)
    brush.rectangle((0, 0, 127, 27), fill=(240, 232, 218, 255))
    brush.rectangle((0, 22, 127, 29), fill=(190, 172, 150, 255))
    for x in range(8, 128, 24):
        brush.rectangle((x, 30, x + 9, 38), fill=(150, 122, 96, 255))
    return picture


def _block(name: str) -> Image.Image:
    mask = Image.new("L", (104, 100))
    ImageDraw.Draw(mask).polygon([(22, 0), (103, 0), (103, 76), (82, 99), (0, 99), (0, 22)], fill=255)
    y, x = np.mgrid[0:100, 0:104]
    shade = np.where(y < 22, 1.18, np.where(x > 82, 0.72, 1.0)).astype(np.float32)
    return textured(mask, name, shade, (0, 0))


def _cloth(name: str) -> Image.Image:
    y, x = np.mgrid[0:108, 0:120].astype(np.float32)
    hem = 96 + 8 * np.sin(x * 0.16)
    mask = Image.fromarray((255 * ((y < hem) & (y > 3 * np.sin(x * 0.1) + 3))).astype(np.uint8))
    return textured(mask, name, 0.9 + 0.18 * np.sin(x * 0.16), (0, 0))
