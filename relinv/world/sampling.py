"""How often the world shows what: relations, entities, backdrops and tints of a training scene, from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relinv.benchmark import Benchmark
from relinv.world.entities import ENTITIES
from relinv.world.scene import BACKGROUNDS, PLAIN, Scene

# Relations are unequally frequent; what is left of 1 goes to scenes of a single entity.
FREQUENCIES: dict[str, float] = {
    "on": 0.12, "inside": 0.11, "ride_on": 0.10, "painted_on": 0.09, "carved_by": 0.07, "hanging_from": 0.08,
    "wrapped_in": 0.07, "hug": 0.08, "shake_hands": 0.07, "back2back": 0.06, "above": 0.03, "beside": 0.04,
    "behind": 0.02, "before": 0.02, "and": 0.03, "alone": 0.08,
}  # fmt: skip
PLAIN_RATE = 0.2
TINT_RATE = 0.25


@dataclass(frozen=True)
class Mix:
    """How often each relation comes, up to a common factor, and the share of unlikely pairs: of any two entities.

    The others are of the benchmark's grids.
    """

    frequencies: dict[str, float]
    unlikely: float


# With likely pairs alone, base and judge would read a relation off its entities.
FOR_BASE = Mix(FREQUENCIES, unlikely=0.3)
# The judge sees more of what is hard to tell: a small pale painting, a shape in one material.
FOR_JUDGE = Mix(FREQUENCIES | {"painted_on": 0.40, "carved_by": 0.30}, unlikely=0.5)


def sample_scene(benchmark: Benchmark, rng: np.random.Generator, mix: Mix = FOR_BASE) -> Scene:
    """Return a training scene; triplets that `benchmark` holds out never come."""
    names, rates = list(mix.frequencies), np.cumsum(list(mix.frequencies.values()))
    relation = names[int(np.searchsorted(rates, rng.random() * rates[-1], side="right"))]
    while True:
        head, tail = _entities(benchmark, relation, rng, mix.unlikely)
        if not benchmark.is_held_out(head, relation, tail):
            return Scene(head, relation, tail, sample_background(rng), int(rng.integers(2**62)), sample_tint(rng))


def sample_tint(rng: np.random.Generator, rate: float = TINT_RATE, strength: float = 0.4) -> tuple[float, float, float]:
    """Return factors for red, green and blue: none with probability 1 − rate, else down to 1 − strength."""
    if rng.random() >= rate:
        return (1.0, 1.0, 1.0)
    red, green, blue = 1 - strength * rng.random(3)
    return float(red), float(green), float(blue)


def _entities(benchmark: Benchmark, relation: str, rng: np.random.Generator, unlikely: float) -> tuple[str, str]:
    if relation in benchmark.relations and (not unlikely or rng.random() >= unlikely):
        grid = benchmark.relations[relation]
        return grid.heads[rng.integers(len(grid.heads))], grid.tails[rng.integers(len(grid.tails))]
    head, tail = rng.choice(len(ENTITIES), 2, replace=False)
    return ENTITIES[head], ENTITIES[tail]


def sample_background(rng: np.random.Generator) -> str:
    """Return a backdrop: plain one time in five, else any of the named ones."""
    names = list(BACKGROUNDS)
    return PLAIN if rng.random() < PLAIN_RATE else names[rng.integers(len(names))]
