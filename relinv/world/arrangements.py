"""All arrangements by name: the ten relations, and six further ones that are painted here."""

from __future__ import annotations

from collections.abc import Callable

from relinv.world.paint import stand
from relinv.world.relations import (
    Boxes,
    Brush,
    back2back,
    carved_by,
    hanging_from,
    hug,
    inside,
    on,
    painted_on,
    ride_on,
    shake_hands,
    wrapped_in,
)


def above(brush: Brush, a: str, b: str) -> Boxes:
    """The head floats over the tail."""
    x = brush.jitter(64, 10)
    lower = stand(brush.scene, brush.thing(b, 54), x, brush.jitter(122, 3))
    return stand(brush.scene, brush.thing(a, 50), brush.jitter(x, 5), brush.jitter(55, 3)), lower


def beside(brush: Brush, a: str, b: str) -> Boxes:
    """Head and tail next to each other on the ground."""
    side = 1 if brush.rng.random() < 0.5 else -1
    ground = brush.jitter(114, 6)
    boxes = [
        stand(brush.scene, brush.thing(name, 54), 64 + s * brush.jitter(32, 2), brush.jitter(ground, 3))
        for name, s in ((a, -side), (b, side))
    ]
    return boxes[0], boxes[1]


def behind(brush: Brush, a: str, b: str) -> Boxes:
    """The head stands further back, partly hidden by the tail."""
    side = 1 if brush.rng.random() < 0.5 else -1
    back = stand(brush.scene, brush.thing(a, 62), 64 + side * brush.jitter(13, 3), brush.jitter(98, 3))
    return back, stand(brush.scene, brush.thing(b, 58), 64 - side * brush.jitter(12, 3), brush.jitter(121, 2))


def before(brush: Brush, a: str, b: str) -> Boxes:
    """The head stands in front of the tail."""
    tail, lead = behind(brush, b, a)
    return lead, tail


def scattered(brush: Brush, a: str, b: str) -> Boxes:
    """Head and tail anywhere in the scene: the arrangement of a mere "and"."""
    corners = [(34, 62), (94, 62), (34, 118), (94, 118)]
    first, second = brush.rng.permutation(4)[:2]
    boxes = [
        stand(brush.scene, brush.thing(name, 50), brush.jitter(corners[c][0], 5), brush.jitter(corners[c][1], 4))
        for name, c in ((a, first), (b, second))
    ]
    return boxes[0], boxes[1]


def alone(brush: Brush, a: str, b: str) -> Boxes:
    """One entity by itself, large; the tail is not shown."""
    box = stand(brush.scene, brush.thing(a, 86), brush.jitter(64, 10), brush.jitter(118, 5))
    return box, box


ARRANGEMENTS: dict[str, Callable[[Brush, str, str], Boxes]] = {
    "painted_on": painted_on, "carved_by": carved_by, "shake_hands": shake_hands, "hug": hug,
    "back2back": back2back, "inside": inside, "on": on, "hanging_from": hanging_from, "wrapped_in": wrapped_in,
    "ride_on": ride_on, "above": above, "beside": beside, "behind": behind, "before": before, "and": scattered,
    "alone": alone,
}  # fmt: skip
