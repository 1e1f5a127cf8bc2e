"""A small checkout for the tiny base, and the command `relinv` as it is typed there."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML
from typer.testing import CliRunner

from relinv.commands import app

ROOT = Path(__file__).resolve().parents[1]


def lay_out_checkout(root: Path, base: Path) -> Path:
    """Write parameters for the base in a folder, and a benchmark of one relation, below `root`; return `root`."""
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load((ROOT / "params.yaml").read_text())
    params["bases"]["miniature"]["model"]["source"] = str(base)
    params["relations"] = ["inside"]
    grid = {"words": "inside", "asymmetric": True, "heads": ["cat", "dog"], "tails": ["box", "cup"]}
    benchmark = {"name": "b", "held_out": None, "validation": {"fraction": 0, "seed": 0}, "relations": {"inside": grid}}
    (root / "data/benchmark").mkdir(parents=True)
    for path, content in {"params.yaml": params, "data/benchmark/miniature.yaml": benchmark}.items():
        with (root / path).open("w") as stream:
            yaml.dump(content, stream)
    return root


def run(*words: str) -> str:
    """Run the command line; return what it prints, or raise what it raises."""
    return CliRunner().invoke(app, list(words), catch_exceptions=False).stdout


def warned(*words: str) -> str:
    """Run the command line; return what it prints as warnings, or raise what it raises."""
    return CliRunner().invoke(app, list(words), catch_exceptions=False).stderr
