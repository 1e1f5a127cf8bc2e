"""What is to be learned: one relation by one method, according to the parameters and the earlier stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from relinv.diffusion.bases import Base
from relinv.errors import UserError
from relinv.exemplars import ExemplarSet, read_exemplars
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.method import InversionMethod
from relinv.params import Params
from relinv.plugins import find_plugin
from relinv.results import FOLDERS, find_benchmark, read_verdict
from relinv.settings import ModelSettings, PreviewSettings, Seed, Settings


@dataclass(frozen=True)
class Problem:
    """One relation to be learned by one method; `words` are the relation's plain words."""

    base: Base
    exemplars: ExemplarSet
    words: str
    method: str
    settings: Settings
    seed: int
    preview: PreviewSettings


@dataclass(frozen=True)
class Task:
    """One training: what is to be learned, the method that learns it, and the checkpoints it can resume from."""

    problem: Problem
    method: InversionMethod
    checkpoints: Checkpoints


def read_problem(params: Params, relation: str, method: str, load: Callable[[ModelSettings], Base]) -> Problem:
    """Return the problem of learning a relation by a method, according to the parameters and the earlier stages.

    `load` returns the base, so that relations learned together can share one. Raises UserError if something is missing
    or wrong.
    """
    words = find_benchmark(params, relation).relation(relation).words
    plugin = find_plugin("relinv.methods", method)
    settings = plugin.Method.settings_for(relation, params.method(method, plugin.Settings))
    model = params.trained_model()
    require_valid(FOLDERS["validate"] / f"{relation}.json")
    return Problem(
        base=load(model),
        exemplars=read_exemplars(FOLDERS["fetch"] / relation),
        words=words,
        method=method,
        settings=settings,
        seed=params.section("invert.seed", Seed),
        preview=params.section("invert.preview", PreviewSettings),
    )


def require_valid(verdict_file: Path) -> None:
    """Raise UserError unless the validate stage passed this relation's exemplars."""
    verdict = read_verdict(verdict_file, f"make it with `python -m stages.validate {verdict_file.stem}`")
    if not verdict.valid:
        told = "".join(f"\n  - {error}" for error in verdict.errors)
        raise UserError(f"The exemplars failed validation, as '{verdict_file}' says; correct them first:{told}")
