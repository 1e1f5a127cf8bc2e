"""What is to be learned, one relation by one method, and what was learned, as a concept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from relinv.diffusion.bases import LIBRARIES, Base
from relinv.diffusion.concept import Concept, embedding_bytes
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

    def concept(self, steps: int) -> Concept:
        """Return what the method has learned in `steps` steps, at the end or on the way, as a concept."""
        facts = self._metadata(steps)
        adapters = {type(adapter).__module__.rpartition(".")[2]: adapter for adapter in self.method.adapters}
        if adapters:
            facts["adapters"] = [
                {"name": name, "file": adapter.FILE if adapter.tensors else None, "options": adapter.options}
                for name, adapter in adapters.items()
            ]
        weights = {
            name: {key: tensor.detach().cpu().clone() for key, tensor in adapter.tensors.items()}
            for name, adapter in adapters.items()
            if adapter.tensors
        }
        return Concept(self.method.token, self.method.embedding(), facts, weights)

    def token_file(self, steps: int) -> bytes | None:
        """Return the row learned in `steps` steps, as a concept's file, or None if a row is not all that is learned."""
        if self.method.embedding() is None or any(adapter.tensors for adapter in self.method.adapters):
            return None
        return embedding_bytes(self.concept(steps))

    def _metadata(self, steps: int) -> dict[str, Any]:
        """Return a concept's metadata: everything that determines it and the steps it took, but no clock time."""
        problem, base = self.problem, self.problem.base
        return {
            "relation": problem.exemplars.relation,
            "method": problem.method,
            "token": self.method.token,
            "template": self.method.template,
            "params": problem.settings.model_dump(mode="json"),
            "seed": problem.seed,
            "steps": steps,
            "base": base.id,
            "base_hash": base.fingerprint,
            "resolution": base.resolution,
            "precision": base.settings.precision,
            "exemplars_hash": problem.exemplars.fingerprint,
            "versions": {name: version(name) for name in LIBRARIES},  # without PyTorch's build, which is the machine's
        }


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
