"""What a method has learned, at the end or on the way, as a concept."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from relinv.diffusion.bases import LIBRARIES
from relinv.diffusion.concept import Concept, embedding_bytes
from relinv.learning.method import InversionMethod
from relinv.learning.problem import Problem


def token_file(problem: Problem, method: InversionMethod, steps: int) -> bytes | None:
    """Return the row learned in `steps` steps, as a concept's file, or None if a row is not all that is learned."""
    if method.embedding() is None or any(adapter.tensors for adapter in method.adapters):
        return None
    return embedding_bytes(to_concept(problem, method, steps))


def to_concept(problem: Problem, method: InversionMethod, steps: int) -> Concept:
    """Return what a method has learned in `steps` steps, as a concept."""
    facts = metadata(problem, method, steps)
    adapters = {type(adapter).__module__.rpartition(".")[2]: adapter for adapter in method.adapters}
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
    return Concept(method.token, method.embedding(), facts, weights)


def metadata(problem: Problem, method: InversionMethod, steps: int) -> dict[str, Any]:
    """Return a concept's metadata: everything that determines it and the steps it took, but no clock time."""
    return {
        "relation": problem.exemplars.relation,
        "method": problem.method,
        "token": method.token,
        "template": method.template,
        "params": problem.settings.model_dump(mode="json"),
        "seed": problem.seed,
        "steps": steps,
        "base": problem.base.id,
        "base_hash": problem.base.fingerprint,
        "resolution": problem.base.resolution,
        "precision": problem.base.settings.precision,
        "exemplars_hash": problem.exemplars.fingerprint,
        "versions": {name: version(name) for name in LIBRARIES},  # without PyTorch's build, which is the machine's
    }
