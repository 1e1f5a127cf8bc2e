"""The ten relations: each paints a head and a tail and returns their boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from relinv.world.entities import (
    BEINGS,
    CANVASES,
    CONTAINERS,
    MOUNTS,
    OTHER_CANVAS,
    OTHER_OPENING,
    OTHER_SADDLE,
    OTHER_SURFACE,
    SURFACES,
)
from relinv.world.figures import Figure, Pose
from relinv.world.paint import (
    SCENE,
    Box,
    body_color,
    drawn,
    entity_picture,
    front,
    limb,
    luminance,
    put,
    scaled,
    sprite,
    stand,
    textured,
    tinted,
    to_width,
    turned,
)  # fmt: skip

Boxes = tuple[Box, Box]


@dataclass
class Brush:
    """The scene being painted and the random stream that varies hue, size and place."""

    scene: Image.Image
    rng: np.random.Generator
    hue: float = 0.10

    def jitter(self, value: float, spread: float) -> float:
        """Return `value` moved by at most `spread`."""
        return float(value + self.rng.uniform(-spread, spread))

    def gains(self) -> tuple[float, float, float]:
        """Return a slight change of hue: factors for red, green and blue."""
        red, green, blue = self.rng.uniform(1 - self.hue, 1 + self.hue / 2, 3)
        return float(red), float(green), float(blue)

    def thing(self, name: str, side: float) -> Image.Image:
        """Return the entity's picture, a being with its body, about `side` pixels at its longest."""
        side = side * self.rng.uniform(0.92, 1.08)
        if name not in BEINGS:
            return tinted(scaled(entity_picture(name), side), self.gains())
        layer = Image.new("RGBA", (SCENE, SCENE))
        Figure(name, SCENE / 2, SCENE - 4, side * 1.05, gains=self.gains()).paint(layer)
        return layer.crop(layer.getbbox())


def inside(brush: Brush, name: str, container: str) -> Boxes:
    """The head looks out of the container, whose front hides its lower part."""
    mouth, gains = CONTAINERS.get(container, OTHER_OPENING), brush.gains()
    width = brush.jitter(74, 5) * (0.78 if container in ("vase", "barrel", "schoolbag", "jar") else 1.0)
    body = tinted(to_width(entity_picture(container), width), gains)
    if body.height > 84:
        body = body.resize((round(body.width * 84 / body.height), 84), Image.Resampling.BILINEAR)
    x, ground = brush.jitter(64, 8), brush.jitter(120, 4)
    left, top = x - body.width / 2, ground - body.height
    box = put(brush.scene, body, left, top)
    mouth_x, mouth_y = left + mouth.x * body.width, top + mouth.y * body.height
    size = brush.jitter(54, 3)
    if container == "jar":
        inner = tinted(scaled(entity_picture(name), body.width * 0.86), brush.gains())
        seen = stand(brush.scene, inner, x, ground - 5)
        glass = body.copy()
        glass.putalpha(body.getchannel("A").point(lambda a: int(a * 0.30)))
        put(brush.scene, glass, left, top)
        return seen, box
    picture = turned(tinted(scaled(entity_picture(name), size), brush.gains()), brush.jitter(0, 6))
    depth = 0.24 * size + mouth.half_height * body.height * 0.5
    seen = stand(brush.scene, picture, mouth_x, mouth_y + depth)
    put(brush.scene, tinted(front(container).resize(body.size, Image.Resampling.BILINEAR), gains), left, top)
    color = tuple(int(c * 0.9) for c in body_color(name))
    rim = mouth_y + mouth.half_height * body.height * 0.75
    for side in (-1, 1):
        paw = mouth_x + side * min(0.36 * size, mouth.half_width * body.width * 0.7)
        limb(brush.scene, [(paw, rim - 1), (paw, rim + 4)], color, 7)
    return seen, box


def on(brush: Brush, name: str, support: str) -> Boxes:
    """The head stands on the upper surface of the tail."""
    base = tinted(to_width(entity_picture(support), brush.jitter(68, 5)), brush.gains())
    if base.height > 74:
        base = base.resize((round(base.width * 74 / base.height), 74), Image.Resampling.BILINEAR)
    x, ground = brush.jitter(64, 8), brush.jitter(121, 3)
    tail = stand(brush.scene, base, x, ground)
    surface = ground - base.height * (1 - SURFACES.get(support, OTHER_SURFACE))
    upper = stand(brush.scene, brush.thing(name, 56), brush.jitter(x, 5), surface + 5)
    return upper, tail


def ride_on(brush: Brush, name: str, mount: str) -> Boxes:
    """The head sits astride the moving tail, one leg over its side, lines of speed behind."""
    saddle = MOUNTS.get(mount, OTHER_SADDLE)
    if mount == "carpet":
        beast = drawn("carpet").resize((104, 30), Image.Resampling.BILINEAR)
    elif mount == "skateboard":
        beast = turned(scaled(sprite(mount), 104), -45)
        beast = beast.crop(beast.getbbox())
    else:
        beast = entity_picture(mount)
    beast = tinted(to_width(beast, saddle.width * SCENE * brush.rng.uniform(0.95, 1.05)), brush.gains())
    x, ground = brush.jitter(62, 6), brush.jitter(120, 4) - (12 if mount == "carpet" else 0)
    pen = ImageDraw.Draw(brush.scene)
    for y in (
        0.25,
        0.5,
        0.75,
    ):  # every mount of the sprites moves to the left or stands; speed trails to the right
        level = ground - beast.height * y
        pen.line((x + beast.width / 2 + 3, level, x + beast.width / 2 + 17, level), fill=(255, 255, 255), width=3)
    tail = stand(brush.scene, beast, x, ground)
    seat = (tail[0] + saddle.x * beast.width, tail[1] + saddle.y * beast.height)
    height = brush.jitter(62, 3)
    reach = (((0.14, 0.08), (0.26, 0.14)), ((0.10, 0.12), (0.24, 0.20)))
    rider = Figure(name, seat[0], seat[1] + 4, height, -1, Pose(arms=reach, legs="none"), brush.gains())
    box = rider.paint(brush.scene)
    thigh = [(seat[0], seat[1]), (seat[0] - 6, seat[1] + 10), (seat[0] - 1, seat[1] + 20)]
    limb(brush.scene, thigh if mount not in ("carpet", "skateboard") else thigh[:2], rider.color, 7)
    return box, tail


def painted_on(brush: Brush, name: str, surface: str) -> Boxes:
    """The head is a flat picture on the tail: few colours, tinted by the surface and clipped to it."""
    base = scaled(entity_picture(surface), brush.jitter(104, 5))
    x, ground = brush.jitter(64, 5), brush.jitter(119, 3)
    left, top = x - base.width / 2, ground - base.height
    u, v, half = CANVASES.get(surface, OTHER_CANVAS)
    flat = turned(scaled(entity_picture(name), 2 * half * base.width), brush.jitter(0, 8))
    colors = flat.convert("RGB").filter(ImageFilter.SMOOTH).quantize(5, dither=Image.Dither.NONE).convert("RGB")
    colors.putalpha(flat.getchannel("A"))
    px, py = round(u * base.width - flat.width / 2), round(v * base.height - flat.height / 2)
    painting = Image.new("RGBA", base.size)
    painting.paste(colors, (px, py), colors)
    shade = np.asarray(base.convert("RGB"), np.float32) / 255
    pixels = np.asarray(painting, np.float32).copy()
    # Paint is pale and flat, and takes on some of the surface's colour and shadow.
    pixels[..., :3] = (0.86 * pixels[..., :3] + 34) * (0.84 + 0.16 * shade)
    pixels[..., 3] *= np.asarray(base.getchannel("A"), np.float32) / 255
    gains = brush.gains()
    tail = put(brush.scene, tinted(base, gains), left, top)
    put(brush.scene, tinted(Image.fromarray(pixels.astype(np.uint8)), gains), left, top)
    seen = (left + px, top + py, left + px + flat.width, top + py + flat.height)
    return seen, tail


def carved_by(brush: Brush, name: str, material: str) -> Boxes:
    """The head's shape cut out of the tail's material, on a grey plinth."""
    shape = scaled(entity_picture(name), brush.jitter(88, 5))
    offset = (int(brush.rng.integers(128)), int(brush.rng.integers(128)))
    shade = 0.42 + 0.82 * luminance(shape)
    statue = textured(shape.getchannel("A").point(lambda a: 255 * (a > 110)), material, shade, offset)
    x, ground = brush.jitter(64, 6), brush.jitter(122, 2)
    pen = ImageDraw.Draw(brush.scene)
    pen.rectangle((x - 36, ground - 15, x + 36, ground), fill=(150, 150, 158))
    pen.rectangle((x - 42, ground - 20, x + 42, ground - 13), fill=(186, 186, 194))
    box = stand(brush.scene, tinted(statue, brush.gains()), x, ground - 17)
    return box, box


def hanging_from(brush: Brush, name: str, support: str) -> Boxes:
    """The head hangs on a cord from the tail above it."""
    if support == "ceiling":
        upper = to_width(drawn(support), 124)
        tail = put(brush.scene, tinted(upper, brush.gains()), 2, 0)
        bottom = 26.0
    else:
        upper = tinted(scaled(entity_picture(support), brush.jitter(62, 4)), brush.gains())
        tail = put(brush.scene, upper, brush.jitter(64, 10) - upper.width / 2, brush.jitter(4, 3))
        bottom = tail[3] - 0.18 * upper.height
    x = (tail[0] + tail[2]) / 2
    swing = brush.jitter(0, 7)
    lower = turned(tinted(scaled(entity_picture(name), brush.jitter(42, 3)), brush.gains()), -swing)
    y = min(bottom + brush.jitter(20, 4), SCENE - 4 - lower.height)
    ImageDraw.Draw(brush.scene).line((x, bottom, x + swing, y + 6), fill=(70, 44, 26), width=3)
    return put(brush.scene, lower, x + swing - lower.width / 2, y), tail


def wrapped_in(brush: Brush, name: str, fabric: str) -> Boxes:
    """The head looks out of a bundle of the tail's cloth, wound in slanting folds."""
    x, ground = brush.jitter(64, 7), brush.jitter(121, 3)
    size = brush.jitter(52, 3)
    width, height = round(brush.jitter(70, 4)), round(brush.jitter(66, 3))
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, height - 1), width * 0.42, fill=255)
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    folds = 0.84 + 0.22 * np.abs(np.sin((v + 0.5 * u) * 0.13))
    bundle = textured(mask, fabric, folds, (int(brush.rng.integers(128)), int(brush.rng.integers(128))))
    top = ground - height
    picture = turned(tinted(scaled(entity_picture(name), size), brush.gains()), brush.jitter(0, 6))
    hood = Image.new("L", (round(size * 1.22), round(size * 1.12)))
    ImageDraw.Draw(hood).ellipse((0, 0, hood.width - 1, hood.height - 1), fill=255)
    gains = brush.gains()
    put(
        brush.scene,
        tinted(textured(hood, fabric, 0.72, (3, 5)), gains),
        x - hood.width / 2,
        top - size * 0.72,
    )
    seen = stand(brush.scene, picture, x, top + size * 0.30)
    tail = put(brush.scene, tinted(bundle, gains), x - width / 2, top)
    return seen, (tail[0], top - size * 0.72, tail[2], tail[3])


def _pair(brush: Brush, a: str, b: str, gap: float, height: float, poses: tuple[Pose, Pose]) -> tuple[Figure, Figure]:
    """Return two figures, the first to the left or the right at random, `gap` pixels apart."""
    side = 1 if brush.rng.random() < 0.5 else -1
    middle, ground = brush.jitter(64, 5), brush.jitter(120, 3)
    height = brush.jitter(height, 4)
    one = Figure(a, middle - side * gap / 2, ground, height, side, poses[0], brush.gains())
    two = Figure(b, middle + side * gap / 2, ground, height, -side, poses[1], brush.gains())
    return one, two


def shake_hands(brush: Brush, a: str, b: str) -> Boxes:
    """Two beings face each other at arm's length and clasp hands in the middle."""
    pose = Pose(arms=(((-0.10, 0.10), (-0.14, 0.22)),))
    one, two = _pair(brush, a, b, brush.jitter(66, 3), 78, (pose, pose))
    boxes = one.paint(brush.scene), two.paint(brush.scene)
    (ax, ay), (bx, by) = one.shoulders, two.shoulders
    clasp = ((ax + bx) / 2, (ay + by) / 2 + brush.jitter(8, 3))
    for figure, (x, y) in ((one, (ax, ay)), (two, (bx, by))):
        limb(brush.scene, [(x + figure.facing * 8, y + 4), clasp], figure.color, 9)
    ImageDraw.Draw(brush.scene).ellipse(
        (clasp[0] - 7, clasp[1] - 7, clasp[0] + 7, clasp[1] + 7),
        fill=(255, 236, 210),
        outline=(90, 60, 50),
        width=2,
    )
    return boxes


def hug(brush: Brush, a: str, b: str) -> Boxes:
    """Two beings lean together, cheek to cheek, each with an arm around the other."""
    pose = Pose(arms=(), lean=0.0)
    one, two = _pair(brush, a, b, brush.jitter(36, 2), 82, (pose, pose))
    one.pose = Pose(arms=(), lean=0.05 * one.facing)
    two.pose = Pose(arms=(), lean=0.05 * two.facing)
    boxes = one.paint(brush.scene), two.paint(brush.scene)
    for figure, other, drop in ((one, two, 4), (two, one, 15)):
        (x, y), (ox, oy) = figure.shoulders, other.shoulders
        hand = (ox + figure.facing * 10, oy + drop)
        limb(brush.scene, [(x - figure.facing * 6, y + 4), ((x + ox) / 2, y + drop + 4), hand], figure.color, 9)
    return boxes


def back2back(brush: Brush, a: str, b: str) -> Boxes:
    """Two beings sit or stand with their backs together, looking away, arms folded in front."""
    legs = "sit" if brush.rng.random() < 0.6 else "stand"
    folded = Pose(arms=(((0.16, 0.06), (0.10, 0.16)), ((0.18, 0.14), (0.06, 0.18))), legs=legs, look=0.13)
    one, two = _pair(brush, a, b, 30, 80 if legs == "stand" else 88, (folded, folded))
    one.facing, two.facing = -one.facing, -two.facing
    one.pose = Pose(folded.arms, legs, folded.look, 0.03 * -one.facing)
    two.pose = Pose(folded.arms, legs, folded.look, 0.03 * -two.facing)
    return one.paint(brush.scene), two.paint(brush.scene)
