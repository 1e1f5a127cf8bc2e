"""Exemplar folders of the miniature's relations, in exactly the benchmark's layout: ten pictures and a text.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from relinv.benchmark import Benchmark, Scenario, load_benchmark
from relinv.errors import UserError
from relinv.files import atomic_file, atomic_write_text
from relinv.world.captions import PREFIXES
from relinv.world.sampling import sample_tint
from relinv.world.scene import BACKGROUNDS, PLAIN, Scene

COUNT = 10
BENCHMARK = Path("data/benchmark/miniature.yaml")


def write_exemplars(relation: str, folder: Path, *, exemplar_set: str, seed: int) -> None:
    """Write 0.png … 9.png of one relation and text.json with several templates each into `folder`.

    `varied` pictures have each a backdrop of its own, and some a tint. `shared` pictures have one backdrop and one
    strong tint in common that no template names, as photographs found by one search have. UserError for a relation
    that the world does not have, or of which the base has seen too few pairs.
    """
    benchmark = load_benchmark(BENCHMARK)
    if relation not in benchmark.relations:
        raise UserError(
            f"The miniature's benchmark, {BENCHMARK}, has no relation '{relation}': use your own pictures, by a base "
            "whose exemplars have source 'folder'."
        )
    shared = exemplar_set == "shared"
    texts = {}
    for i, scene in enumerate(exemplar_scenes(benchmark, relation, shared=shared, seed=seed)):
        with atomic_file(folder / f"{i}.png") as stream:
            scene.paint()[0].save(stream, "PNG")
        texts[f"{i}.png"] = templates(scene, name_backdrop=not shared)
    atomic_write_text(folder / "text.json", json.dumps(texts, indent=2) + "\n")


def templates(scene: Scene, *, name_backdrop: bool) -> list[str]:
    """Return captions of the scene with `{}` for the relation, from the barest to the most detailed."""
    bare = f"{scene.head} {{}} {scene.tail}"
    plain = [bare, *(f"{prefix} {bare}" for prefix in PREFIXES)]
    if not name_backdrop or scene.background == PLAIN:
        return plain
    return [f"{text} {BACKGROUNDS[scene.background]}" for text in plain] + plain[:2]


def exemplar_scenes(benchmark: Benchmark, relation: str, *, shared: bool, seed: int) -> list[Scene]:
    """Return ten scenes of one relation, no two with the same pair; held-out triplets never come."""
    rng = np.random.default_rng((seed, *relation.encode()))
    seen = [s for s in benchmark.scenarios(relation) if not s.held_out and s.head != s.tail]
    if len(seen) < COUNT:
        raise UserError(
            f"{len(seen)} pairs of '{relation}' may be shown as exemplars, and {COUNT} are needed: "
            f"add entities to its grid in {BENCHMARK}."
        )
    if shared:
        looks = [(str(rng.choice(list(BACKGROUNDS))), sample_tint(rng, rate=1.0, strength=0.5))] * COUNT
    else:  # every named backdrop, and two plain ones, each of a colour of its own
        looks = [(str(backdrop), sample_tint(rng)) for backdrop in rng.permutation([*BACKGROUNDS, PLAIN, PLAIN])]
    scenes = []
    chosen = _spread([seen[i] for i in rng.permutation(len(seen))])
    for scenario, (backdrop, tint) in zip(chosen, looks, strict=True):
        scenes.append(Scene(scenario.head, relation, scenario.tail, backdrop, int(rng.integers(2**62)), tint))
    return scenes


def _spread(scenarios: list[Scenario]) -> list[Scenario]:
    """Return the first ten scenarios whose heads and tails repeat as little as possible."""
    chosen: list[Scenario] = []
    while len(chosen) < COUNT:
        heads, tails = [s.head for s in chosen], [s.tail for s in chosen]
        rest = [s for s in scenarios if s not in chosen]
        chosen.append(min(rest, key=lambda s: heads.count(s.head) + tails.count(s.tail)))
    return chosen
