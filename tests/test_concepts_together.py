"""Concepts of different methods in one prompt, each from its own file, in any order."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from relinv.diffusion.bases import Base
from relinv.diffusion.concept import Concept, load_concept
from relinv.errors import UserError
from relinv.imagining import imagine
from relinv.learning.inversion import invert_relation
from relinv.settings import GenerateSettings
from tests.inverting import LEARNING, problem
from tests.tiny import weights

SETTINGS = GenerateSettings(pairs="all", seed=0, steps=2, guidance_scale=4.0, scheduler="dpmpp", batch_size=1)


@pytest.fixture(scope="module")
def concepts(base: Base, exemplar_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Concept]:
    """What each method learned in two steps."""
    root = tmp_path_factory.mktemp("together")
    for name in LEARNING:
        invert_relation(problem(base, exemplar_folder, name, steps=2), root / name, root / "scratch")
    return {name: load_concept(root / name, base) for name in LEARNING}


def drawn(base: Base, *concepts: Concept) -> np.ndarray:
    return np.asarray(imagine(base, concepts, "<koala> <r> box", SETTINGS, seed=1), dtype=int)


def turned(concept: Concept) -> Concept:
    """Return a concept whose token's row, or all that it has instead of one, points the other way."""
    if concept.embedding is not None:
        return replace(concept, embedding=-concept.embedding)
    weights = {adapter: {name: -tensor for name, tensor in own.items()} for adapter, own in concept.weights.items()}
    return replace(concept, weights=weights)


def test_a_concept_whose_adapter_lacks_an_option_is_damaged(base: Base, concepts: dict[str, Concept]) -> None:
    (described,) = concepts["perfusion"].adapters
    left = {name: value for name, value in described["options"].items() if name != "tau"}
    damaged = {**concepts["perfusion"].metadata, "adapters": [{**described, "options": left}]}
    with pytest.raises(UserError, match="'inside' by 'perfusion' is damaged: its adapter 'perfusion' lacks 'tau'"):
        drawn(base, replace(concepts["perfusion"], metadata=damaged))


@pytest.mark.parametrize("pair", list(combinations(LEARNING, 2)), ids="-".join)
def test_two_concepts_hold_in_one_prompt_and_leave_the_base(
    pair: tuple[str, str], base: Base, concepts: dict[str, Concept]
) -> None:
    before = weights(base)
    relation, thing = concepts[pair[0]], concepts[pair[1]].called("<koala>")
    first, again = drawn(base, relation, thing), drawn(base, relation, thing)
    assert np.array_equal(first, again)
    assert first.std() > 0
    for kept, other in ((relation, thing), (thing, relation)):
        assert not np.array_equal(drawn(base, kept, turned(other)), first)  # each is seen in the picture
    assert np.abs(drawn(base, thing, relation) - first).max() <= 2
    assert weights(base) == before


def test_what_replaces_layers_comes_first_whatever_the_order(base: Base, concepts: dict[str, Concept]) -> None:
    found = concepts["perfusion"]
    (adapter,) = found.adapters
    locked = {**adapter, "options": {**adapter["options"], "locking": "global"}}
    relation = replace(found, metadata={**found.metadata, "adapters": [locked]})
    thing = concepts["dreambooth"].called("<koala>")
    assert np.array_equal(drawn(base, relation, thing), drawn(base, thing, relation))
