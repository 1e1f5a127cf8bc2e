"""Concepts that nobody had to learn: a row drawn at random, with the metadata that an inversion writes."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

from relinv.diffusion.bases import Base
from relinv.diffusion.concept import Concept, save_concept
from relinv.exchange.tensor_files import load_content
from relinv.exchange.token_files import token_in


def made(base: Base, /, **changes: object) -> Concept:
    """Return a learned concept for `base`; `changes` are to its metadata."""
    row = torch.randn(base.dim, generator=torch.Generator().manual_seed(0))
    metadata = {
        "relation": "inside",
        "method": "reversion",
        "token": "<r>",
        "template": "{head} <r> {tail}",
        "params": {"steps": 3},
        "seed": 0,
        "steps": 3,
        "base": base.id,
        "base_hash": base.fingerprint,
        "exemplars_hash": "e" * 64,
        "versions": {"torch": "2"},
    }
    return Concept("<r>", row, metadata | changes)


def plain_words(base: Base, template: str) -> Concept:
    """Return a concept of words that every base knows, as in `template`."""
    return Concept(None, None, made(base, token=None, template=template, method="relation_words").metadata)


def keep(checkout: Path, concept: Concept) -> Path:
    """Save a concept where commands in `checkout` look for it by its relation and method; return its folder."""
    folder = checkout / "data/concepts" / concept.metadata["relation"] / concept.method
    folder.mkdir(parents=True, exist_ok=True)
    save_concept(folder, concept)
    return folder


def read_token(file: Path) -> tuple[str, torch.Tensor]:
    """Return the name and the rows, (rows, dim), of the token in another program's file."""
    return token_in(load_content(file), file)


def parameters_of_old(values: torch.Tensor) -> torch.nn.ParameterDict:
    """Return {"*": values} as it is pickled by torch up to 1.11, which held the parameters alone and no keys."""
    parameters = torch.nn.ParameterDict()
    hooks = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks",
             "_load_state_dict_pre_hooks")  # fmt: skip
    state = {name: OrderedDict() for name in ("_buffers", *hooks, "_modules")}
    held = OrderedDict({"*": torch.nn.Parameter(values)})
    vars(parameters).clear()
    vars(parameters).update(state, training=True, _parameters=held, _non_persistent_buffers_set=set())
    return parameters
