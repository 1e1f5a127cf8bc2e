"""Beings: a sprite's head on a small drawn body with arms and legs, so that hugging or riding can be seen."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from relinv.world.entities import Color
from relinv.world.paint import Box, body_color, entity_picture, limb, put, scaled, tinted, turned

Point = tuple[float, float]


@dataclass(frozen=True)
class Pose:
    """How a figure holds itself; offsets are fractions of its height from its shoulders, x towards `facing`.

    arms: elbow and hand of each arm. look: how far the head is turned aside. legs: "stand", "sit" or "none".
    """

    arms: tuple[tuple[Point, Point], ...] = (((0.06, 0.12), (0.08, 0.24)), ((-0.06, 0.12), (-0.08, 0.24)))
    legs: str = "stand"
    look: float = 0.0
    lean: float = 0.0


@dataclass
class Figure:
    """A being at a place in the scene: feet at (x, ground), `height` pixels tall, facing right (1) or left (-1)."""

    name: str
    x: float
    ground: float
    height: float
    facing: int = 1
    pose: Pose = field(default_factory=Pose)
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def color(self) -> Color:
        """Return the body's colour, RGB in 0..255."""
        red, green, blue = (min(255, round(c * g)) for c, g in zip(body_color(self.name), self.gains, strict=True))
        return red, green, blue

    @property
    def shoulders(self) -> Point:
        """Return where the arms start, in scene pixels."""
        legs = {"stand": 0.40, "sit": 0.28, "none": 0.26}[self.pose.legs]
        return self.x + self.pose.lean * self.height, self.ground - legs * self.height

    def paint(self, scene: Image.Image) -> Box:
        """Paint legs, torso, arms and head; return the figure's box."""
        self.paint_legs(scene)
        self.paint_torso(scene)
        self.paint_arms(scene)
        return self.paint_head(scene)

    def paint_legs(self, scene: Image.Image) -> None:
        """Paint the legs: straight for "stand", stretched forward for "sit"."""
        height, width = self.height, self.height * 0.11
        hip = self.ground - (0.14 if self.pose.legs == "stand" else 0.06) * height
        if self.pose.legs == "stand":
            for side in (-1, 1):
                x = self.x + side * 0.09 * height
                limb(scene, [(x, hip), (x, self.ground - width / 2)], self.color, width)
        elif self.pose.legs == "sit":
            knee = (self.x + self.facing * 0.20 * height, hip - 0.10 * height)
            foot = (self.x + self.facing * 0.34 * height, self.ground - width / 2)
            limb(scene, [(self.x, hip), knee, foot], self.color, width)

    def paint_torso(self, scene: Image.Image) -> None:
        """Paint the torso from the shoulders to the hips."""
        x, top = self.shoulders
        bottom = self.ground - (0.08 if self.pose.legs == "stand" else 0.0) * self.height
        half = 0.17 * self.height
        brush = ImageDraw.Draw(scene)
        outline = tuple(int(c * 0.62) for c in self.color)
        outer = (min(x, self.x) - half, top - 0.08 * self.height, max(x, self.x) + half, bottom)
        brush.rounded_rectangle(outer, half * 0.9, fill=self.color, outline=outline, width=2)

    def paint_arms(self, scene: Image.Image) -> None:
        """Paint both arms through elbow and hand."""
        x, y = self.shoulders
        for elbow, hand in self.pose.arms:
            points = [(x + self.facing * p[0] * self.height, y + p[1] * self.height) for p in ((0, 0), elbow, hand)]
            limb(scene, points, self.color, self.height * 0.10)

    def paint_head(self, scene: Image.Image) -> Box:
        """Paint the head above the shoulders, turned aside by the pose's look; return the whole figure's box."""
        x, y = self.shoulders
        picture = tinted(scaled(entity_picture(self.name), 0.56 * self.height), self.gains)
        if self.pose.look:
            picture = picture.resize((max(1, round(picture.width * 0.84)), picture.height), Image.Resampling.BILINEAR)
        if self.pose.lean:
            picture = turned(picture, -self.pose.lean * 70)
        left = x + self.facing * self.pose.look * self.height - picture.width / 2
        box = put(scene, picture, left, y - picture.height + 0.04 * self.height)
        return (
            min(box[0], self.x - 0.2 * self.height),
            box[1],
            max(box[2], self.x + 0.2 * self.height),
            self.ground,
        )
