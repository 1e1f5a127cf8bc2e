"""How good the miniature is, measured on triplets held out of its training, and the model card that says so."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd

from relinv.benchmark import Benchmark, Scenario
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import Concept
from relinv.diffusion.sampling import encode_png
from relinv.files import atomic_write_bytes, atomic_write_text, write_json
from relinv.generation import generate, plan
from relinv.judge import Judge, load_judge
from relinv.learning.words import PREPOSITIONS
from relinv.miniature.autoencoder import decode, encode, psnr
from relinv.scoring import Context, load_metric
from relinv.settings import GenerateSettings, JudgeSettings, ModelSettings
from relinv.world.entities import ENTITIES
from relinv.world.exemplars import exemplar_scenes
from relinv.world.sampling import sample_background, sample_tint
from relinv.world.scene import SIDE, Scene

if TYPE_CHECKING:
    from PIL.Image import Image

READINGS = ("relation_accuracy", "entity_accuracy", "scene_accuracy", "direction")
KEEPS_LOOKS = ("inside", "on", "hug", "shake_hands", "back2back", "ride_on")
SHOWN = 8  # scenes of each relation in the picture of the world
SCENES_EACH = 10  # held-out scenes the judge is tested on, for each held-out triplet


def judge_accuracy(judge: Judge, vae: Any, benchmark: Benchmark, *, seed: int) -> dict[str, float]:
    """Return the judge's accuracies on true scenes of held-out triplets passed through the autoencoder."""
    readings = []
    for relation in benchmark.relations:
        scenarios, pictures = held_out_scenes(benchmark, relation, seed=seed)
        readings.append(read_pictures(judge, benchmark, relation, scenarios, decode(vae, encode(vae, pictures))))
    means = pd.concat(readings).drop(columns="relation").mean()
    return {name: round(float(means[name]), 4) for name in READINGS} | {"scenes": sum(map(len, readings))}


def held_out_scenes(benchmark: Benchmark, relation: str, *, seed: int) -> tuple[list[Scenario], np.ndarray]:
    """Return held-out scenarios, each several times, and fresh renders of them, uint8 (n, 64, 64, 3)."""
    scenarios = [s for s in benchmark.scenarios(relation) if s.held_out for _ in range(SCENES_EACH)]
    rng = np.random.default_rng((seed, list(benchmark.relations).index(relation)))
    scenes = [
        Scene(s.head, relation, s.tail, sample_background(rng), int(rng.integers(2**62)), sample_tint(rng))
        for s in scenarios
    ]
    return scenarios, np.stack([np.asarray(scene.paint()[0]) for scene in scenes])


def plain_words_accuracy(base: Base, judge: Judge, benchmark: Benchmark, settings: GenerateSettings) -> pd.DataFrame:
    """Return the readings of plain prompts on held-out triplets, one row an image."""
    rows = []
    for relation in benchmark.relations.values():
        scenarios = [s for s in benchmark.scenarios(relation.name) if s.held_out]
        words = Concept(None, None, {"method": "relation_words", "template": f"{{head}} {relation.words} {{tail}}"})
        batches = generate(base, words, plan(base, words, scenarios, settings), settings)
        pictures = [np.asarray(picture) for _, batch in batches for picture in batch]
        rows.append(read_pictures(judge, benchmark, relation.name, scenarios, np.stack(pictures)))
    return pd.concat(rows, ignore_index=True)


def read_pictures(
    judge: Judge, benchmark: Benchmark, relation: str, scenarios: list[Scenario], pictures: np.ndarray
) -> pd.DataFrame:
    """Return the accuracy readings of pictures (n, 64, 64, 3), one row each, with their relation."""
    from PIL import Image

    context = Context(
        relation=benchmark.relation(relation),
        relations=tuple(benchmark.relations.values()),
        pairs=tuple((s.head, s.tail) for s in scenarios),
        images=judge.encode_images([Image.fromarray(picture) for picture in pictures], 100),
        exemplars=np.zeros((0, 0)),
        encode_texts=judge.encode_texts,
    )
    readings = {name: load_metric(name).score(context) for name in READINGS}
    return pd.DataFrame({"relation": relation, **readings})


def word_cosines(base: Base) -> dict[str, float]:
    """Return mean cosines of token rows: among prepositions, among entities, between the two."""
    prepositions, entities = (_unit_rows(base, words) for words in (PREPOSITIONS, ENTITIES))
    return {
        "among_prepositions": _mean_off_diagonal(prepositions @ prepositions.T),
        "among_entities": _mean_off_diagonal(entities @ entities.T),
        "between": round(float((prepositions @ entities.T).mean()), 4),
    }


def make_card(home: Path, benchmark: Benchmark, recipe: Mapping[str, Any], settings: GenerateSettings) -> None:
    """Measure the base and judge in `home` and write its card.json, CARD.md and world.png."""
    base = load_base(
        ModelSettings(source=str(home / "base"), revision=None, device="cpu", precision="fp32", resolution=64)
    )
    judge = load_judge(JudgeSettings(model=str(home / "judge"), pretrained=None, device="cpu"))
    rows = plain_words_accuracy(base, judge, benchmark, settings)
    fresh = np.concatenate([held_out_scenes(benchmark, r, seed=2)[1] for r in benchmark.relations])
    each = rows.groupby("relation", sort=False).mean().round(4).to_dict("index")
    facts = {
        "plain_words": {relation: defined(means) for relation, means in each.items()},
        "plain_words_mean": defined(rows.drop(columns="relation").mean().round(4).to_dict()),
        "entity_accuracy_where_looks_are_kept": _kept_looks(rows),
        "judge": json.loads((home / "judge" / "accuracy.json").read_text()),
        "vae_psnr_db": round(psnr(base.vae, fresh), 2),
        "unet": {"channels": list(base.unet.config.block_out_channels), "parameters": base.unet.num_parameters()},
        "token_cosines": word_cosines(base),
        "generation": settings.model_dump(),
        "recipe": dict(recipe),
    }
    write_json(home / "card.json", facts)
    atomic_write_text(home / "CARD.md", as_markdown(facts))
    atomic_write_bytes(home / "world.png", encode_png(world_sheet(benchmark)))


def defined(means: Mapping[str, float]) -> dict[str, float | None]:
    """Return means with None for NaN: a symmetric relation has no direction."""
    return {name: None if math.isnan(mean) else mean for name, mean in means.items()}


def as_markdown(facts: Mapping[str, Any]) -> str:
    """Return the model card of what card.json holds."""
    template = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    options = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True}
    page = jinja2.Environment(**options).from_string(template)
    return page.render(entities=len(ENTITIES), keeps_looks=KEEPS_LOOKS, **facts)


def world_sheet(benchmark: Benchmark) -> Image:
    """Return a picture of the world: a row a relation, its words and eight scenes."""
    from PIL import Image, ImageDraw

    pitch, label = SIDE + 2, 2 * SIDE
    sheet = Image.new("RGB", (label + SHOWN * pitch, len(benchmark.relations) * pitch), "white")
    for row, relation in enumerate(benchmark.relations.values()):
        ImageDraw.Draw(sheet).text((4, row * pitch + 24), relation.words, "black", font_size=13)
        scenes = exemplar_scenes(benchmark, relation.name, shared=False, seed=0)[:SHOWN]
        for column, scene in enumerate(scenes):
            sheet.paste(scene.paint()[0], (label + column * pitch, row * pitch))
    return sheet


def _kept_looks(rows: pd.DataFrame) -> float:
    return round(float(rows[rows.relation.isin(KEEPS_LOOKS)].entity_accuracy.mean()), 4)


def _unit_rows(base: Base, words: tuple[str, ...] | list[str]) -> np.ndarray:
    ids = [base.tokenizer(word, add_special_tokens=False).input_ids for word in words]
    rows = base.table[[i[0] for i in ids if len(i) == 1]].float().cpu().numpy()  # (words, dim)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _mean_off_diagonal(cosines: np.ndarray) -> float:
    count = len(cosines)
    return round(float((cosines.sum() - np.trace(cosines)) / (count * (count - 1))), 4)
