"""A small checkout for the tiny base, and the command `relinv` as it is typed there."""

from __future__ import annotations

from pathlib import Path

from dvc.utils.hydra import apply_overrides
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


def files_below(folder: Path) -> dict[str, bytes]:
    """Return {path in the folder: content} of all files below it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def name_a_gpu_that_is_not_here() -> None:
    """Let the parameters of the checkout that commands run in name a GPU that no machine has."""
    apply_overrides(Path("params.yaml"), ["bases.miniature.model.device=cuda:99"])


def run(*words: str) -> str:
    """Run the command line; return what it prints, or raise what it raises."""
    return CliRunner().invoke(app, list(words), catch_exceptions=False).stdout


def warned(*words: str) -> str:
    """Run the command line; return what it prints as warnings, or raise what it raises."""
    return CliRunner().invoke(app, list(words), catch_exceptions=False).stderr
