"""Results of a run that never happened, in the formats of the stages, and the shapes of a drawing made of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

from relinv.params import Params, load_params
from relinv.report.rows import FURTHER, format_rows, with_leakage
from relinv.results import Verdict
from relinv.statistics import Bootstrap

METHODS = ["relation_words", "textual_inversion", "reversion"]
RELATIONS = ["inside", "hug"]
HEADS, TAILS = ["cat", "dog", "panda", "child"], ["box", "cup", "vase"]
COLOURS = ["#c98", "#9bc", "#bc9", "#cb9"]
FEW = Bootstrap(resamples=100)
SKILL = {"relation_words": (0.8, 0.5), "textual_inversion": (0.55, 0.45), "reversion": (0.7, 0.65)}


def write_run(root: Path, relations: list[str] = RELATIONS, methods: list[str] = METHODS) -> Params:
    """Write params, benchmark, exemplars, verdicts, concepts, images and scores; return the params."""
    shutil.copytree(_written(tuple(relations), tuple(methods)).name, root, dirs_exist_ok=True)
    return load_params(root / "params.yaml")


@cache
def _written(relations: Sequence[str], methods: Sequence[str]) -> TemporaryDirectory[str]:
    """Return a folder with all of it, made once and there until the tests end."""
    folder = TemporaryDirectory()
    root = Path(folder.name)
    _write_params(root, relations, methods)
    grid = {"asymmetric": True, "heads": HEADS, "tails": TAILS}
    entries = {name: {"words": name.replace("_", " "), **grid} for name in relations}
    held_out = {"fraction": 0.2, "seed": 0}
    _dump(
        root / "data/benchmark/miniature.yaml",
        {
            "name": "miniature",
            "held_out": held_out,
            "validation": {"fraction": 0.25, "seed": 1},
            "relations": entries,
        },
    )
    _dump(root / "data/miniature/judge/accuracy.json", {"relation_accuracy": 0.981, "direction": 0.957, "scenes": 400})
    for relation in relations:
        _draw(root / "data/relations" / relation, 4)
        templates = {f"{index}.png": ["cat {} box"] for index in range(4)}
        _dump(root / "data/relations" / relation / "text.json", templates)
        reading = {
            "pictures": 4,
            "right": 4 - (relation == "hug"),
            "choices": len(relations),
            "unread": 0,
            "vqa_right": None,
        }
        _dump(root / f"data/judged/{relation}.json", reading | {"judge": ""})
        warnings = ["3.png is nearly the same picture as 1.png.", "2.png shows <nothing>."] if relation == "hug" else []
        verdict = Verdict(relation, images=4, captions=4, errors=[], warnings=warnings)
        _dump(root / f"data/verdicts/{relation}.json", verdict.to_json())
        for method in methods:
            write_arm(root, relation, method)
    return folder


def write_arm(root: Path, relation: str, method: str) -> None:
    """Write the concept, losses, images and scores of one relation and method."""
    metadata = {
        "relation": relation,
        "method": method,
        "token": "<r>",
        "template": "{head} <r> {tail}",
        "params": {},
        "seed": 0,
        "steps": 60,
        "versions": {},
        "base": "data/miniature/base",
        "base_hash": "b" * 64,
        "exemplars_hash": "e" * 64,
    }
    folder = root / "data/concepts" / relation / method
    _dump(folder / "concept.json", metadata)
    if method != "relation_words":
        steps = np.arange(1, 61)
        losses = {"step": steps, "denoise": 0.2 + 0.1 * np.cos(steps) + 1 / steps}
        losses |= {"steer": 2 / np.sqrt(steps)} if method == "reversion" else {}
        total = losses["denoise"] + 0.01 * losses.get("steer", 0)
        pd.DataFrame(losses | {"total": total}).to_csv(folder / "losses.csv", index=False)
    _draw(root / "data/images" / relation / method, len(HEADS) * len(TAILS), "{:03d}.png")
    path = root / "data/scores" / relation / f"{method}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    score_table(relation, method).to_csv(path, index=False)


def score_table(relation: str, method: str, seed: int = 0) -> pd.DataFrame:
    """Return score rows as the score stage writes them, drawn from the method's made-up skill."""
    count = len(HEADS) * len(TAILS)
    generator = np.random.default_rng([seed, *relation.encode(), *method.encode()])
    right = generator.random((2, count)) < np.array(SKILL.get(method, (0.5, 0.5)))[:, None]
    rows = pd.DataFrame({"relation": relation, "method": method, "index": range(count)})
    rows["head"] = [head for head in HEADS for _ in TAILS]
    rows["tail"] = TAILS * len(HEADS)
    rows["held_out"] = [index % 3 == 0 for index in range(count)]
    rows["seed"] = [1000 * seed + index for index in range(count)]
    rows["file"] = [f"{index:03d}.png" for index in range(count)]
    rows["direction"] = generator.integers(0, 2, count) if relation == "inside" else np.nan
    rows["entity"] = generator.normal(0.3, 0.02, count)
    rows["entity_accuracy"], rows["relation_accuracy"] = right[1].astype(float), right[0].astype(float)
    rows["exemplar_similarity"] = generator.normal(0.5 + 0.1 * (method == "textual_inversion"), 0.02, count)
    rows["image_similarity"] = rows["exemplar_similarity"] - 0.1
    rows["relation_margin"] = generator.normal(0.05, 0.02, count)
    rows["relation_score"] = generator.normal(0.35, 0.02, count)
    rows["scene_accuracy"] = rows["entity_accuracy"] * rows["relation_accuracy"]
    rows["judge"] = ""  # not known: by an earlier version
    return rows.assign(**{name: generator.random(count) for name in FURTHER if name not in rows})


def scored(*tables: pd.DataFrame) -> pd.DataFrame:
    """Return score tables as one, with leakage."""
    return with_leakage(pd.concat(tables, ignore_index=True))


def pretended(params: dict) -> str:
    """Return score rows in which reversion is as good as `skill` says, as the report writes them."""
    tables = []
    for relation in params["relations"]:
        for method in params["methods"]:
            table = score_table(relation, method, params["invert"]["seed"])
            if method == "reversion":
                table["scene_accuracy"] = (table["index"] < params["score"]["skill"] * 12).astype(float)
            tables.append(table)
    return format_rows(scored(*tables))


def shapes(drawn: str, tag: str, kind: str = "") -> list[ElementTree.Element]:
    """Return a drawing's shapes of one tag, in order; if `kind` is given, those of this class alone."""
    found = ElementTree.fromstring(drawn).iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    return [shape for shape in found if not kind or shape.get("class") == kind]


def numbers(shape: ElementTree.Element, *names: str) -> list[float]:
    """Return some of a shape's attributes."""
    return [float(shape.attrib[name]) for name in names]


def _write_params(root: Path, relations: Sequence[str], methods: Sequence[str]) -> None:
    here = Path(__file__).parent.parent / "params.yaml"
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(here.read_text(encoding="utf-8"))
    values |= {"relations": list(relations), "methods": list(methods)}
    values["report"]["resamples"] = 200
    root.mkdir(parents=True, exist_ok=True)
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        yaml.dump(values, stream)


def _dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")  # JSON is YAML too


def _draw(folder: Path, count: int, name: str = "{}.png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture = Image.new("RGB", (64, 64), COLOURS[index % len(COLOURS)])
        ImageDraw.Draw(picture).ellipse((10 + index, 14, 40 + index, 44), fill="#346")
        picture.save(folder / name.format(index))
