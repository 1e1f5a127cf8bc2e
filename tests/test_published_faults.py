"""Faults of the published code that this one does not share.

Four more are tested elsewhere: a preposition of two tokens (tests/test_sd15.py), a run that cannot be repeated or
resumed, and previews before training alone (tests/test_methods_contract.py), and a concept that holds the whole token
table (tests/test_concept.py).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relinv.benchmark import Scenario
from relinv.diffusion.bases import Base
from relinv.diffusion.concept import Concept
from relinv.exemplars import Exemplar, ExemplarSet
from relinv.generation import generate_folder
from relinv.images import read_pictures, read_records
from relinv.learning.inversion import invert_relation, learn
from relinv.learning.problem import Task
from relinv.learning.training import Loop
from relinv.learning.words import PREPOSITIONS
from relinv.methods import reversion
from relinv.methods.reversion import Method
from relinv.settings import GenerateSettings, ValidateSettings
from relinv.validation import validate_folder
from tests.concepts import made
from tests.dying import eager_checkpoints
from tests.inverting import LEARNING, METHODS, build, inputs, looping, problem

CHECKS = ValidateSettings(minimum_images=4, minimum_side=32, duplicate_difference=0.0)
SETTINGS = GenerateSettings(pairs="all", seed=0, steps=1, guidance_scale=2.0, scheduler="ddim", batch_size=3)


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """Return a list that grows by what each call of a method is first given."""
    calls, function = [], getattr(owner, name)

    def call(first: Any, *rest: Any, **named: Any) -> Any:
        calls.append(first)
        return function(first, *rest, **named)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_the_optimiser_does_not_hold_the_whole_table(base: Base, exemplar_folder: Path) -> None:
    task = problem(base, exemplar_folder, "reversion")
    method = Method(base, "inside", task.settings, task.exemplars)
    assert sum(tensor.numel() for group in method.groups() for tensor in group["params"]) == base.dim


@pytest.mark.parametrize("name", LEARNING)
def test_weight_decay_shrinks_nothing_unless_asked(
    name: str, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    changes = {"norm": "free", "learning_rate": 0.1, "prior_images": 0, "scale_variants": 0}
    kept, shrunk = (
        step_without_gradient(looping(problem(base, exemplar_folder, name, **changes | decay), tmp_path))
        for decay in ({}, {"weight_decay": 0.5})
    )
    assert all(torch.equal(before, after) for before, after in kept)
    row, left = shrunk[0]
    torch.testing.assert_close(left, (1 - 0.1 * 0.5) * row)


def step_without_gradient(loop: Loop) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each learned tensor before and after a step of the optimiser along gradients of zero."""
    learned = [tensor for group in loop.optimizer.param_groups for tensor in group["params"]]
    before = [tensor.detach().clone() for tensor in learned]
    for tensor in learned:
        tensor.grad = torch.zeros_like(tensor)
    loop.optimizer.step()
    return list(zip(before, learned, strict=True))


def test_pictures_are_not_encoded_anew_at_every_step(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = counted(monkeypatch, base.vae, "encode")
    invert_relation(problem(base, exemplar_folder, "reversion", steps=12), tmp_path / "concept", tmp_path / "scratch")
    assert len(encoded) == 4


def test_captions_are_not_tokenised_anew_at_every_step_and_no_gpu_is_presumed(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("the code presumes a GPU")

    for kind in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(kind, "cuda", refuse)
    tokenised = counted(monkeypatch, base, "tokenize")
    read = counted(monkeypatch, reversion, "content_ids")
    task = problem(base, exemplar_folder, "reversion", steps=30)
    task = replace(task, preview=task.preview.model_copy(update={"prompts": []}))
    invert_relation(task, tmp_path / "concept", tmp_path / "scratch")
    assert 0 < len(tokenised) == len({prompt for (prompt,) in tokenised}) <= 8
    assert 0 < len(read) <= 8  # of 60 samples that are steered away from their captions' words


def test_faulty_captions_are_told_before_anything_is_learned(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    captions = json.loads((exemplar_folder / "text.json").read_text())
    captions["0.png"] = ["cat in box"]
    captions["9.png"] = captions.pop("1.png")
    for path in exemplar_folder.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "text.json").write_text(json.dumps(captions))
    verdict = validate_folder(tmp_path, CHECKS, base.tokenizer, resolution=64)
    text = "\n".join(verdict.errors)
    assert "has 0 '{}'" in text and "names '9.png', which is not there" in text and "1.png has no captions" in text


def drawing_all(base: Base, exemplar_folder: Path) -> Method:
    """Return ReVersion with every preposition in each draw, so that its steering follows from the captions alone.

    The row starts far from each preposition, at a temperature at which every word counts.
    """
    changes = {"steer_positives": len(PREPOSITIONS), "steer_temperature": 1.0, "initializer_token": "red"}
    method = build(problem(base, exemplar_folder, "reversion", **changes))
    assert isinstance(method, Method)
    return method


def steering(method: Method, *captions: str) -> float:
    """Return the steering loss of a batch of captions."""
    return method.losses(inputs([*captions]))["steer"].value.item()


def by_hand(method: Method, *words: str) -> float:
    """Return the steering loss of one caption whose content words are `words`, each one token."""
    base = method.base

    def pull(words: Sequence[str]) -> torch.Tensor:
        rows = base.table[base.tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in words])]  # (words, dim)
        return (torch.cosine_similarity(rows, method.row, dim=-1) / method.settings.steer_temperature).exp().sum()

    return -(pull(PREPOSITIONS) / (pull(PREPOSITIONS) + pull(words))).log().item()


def test_steering_does_not_look_for_the_row_at_a_place_in_a_caption(base: Base, exemplar_folder: Path) -> None:
    learner = drawing_all(base, exemplar_folder)
    expected = by_hand(learner, "cat", "box")
    assert steering(learner, "cat beside box", "cat <r> box") == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01


def test_padding_does_not_repel_the_row(base: Base, exemplar_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = copy.deepcopy(base.tokenizer)
    padded.pad_token = "!"  # as Stable Diffusion 2's tokenizer pads, with a token that is no special one
    monkeypatch.setattr(base, "tokenizer", padded)
    learner = drawing_all(base, exemplar_folder)
    assert base.tokenize(["cat"])[0, -1] == padded.convert_tokens_to_ids("!") != padded.eos_token_id
    assert steering(learner, "cat <r> box") == pytest.approx(by_hand(learner, "cat", "box"), rel=1e-4)


def test_no_word_repels_the_row_but_a_captions_own_each_once(base: Base, exemplar_folder: Path) -> None:
    learner = drawing_all(base, exemplar_folder)
    busy = "cat <r> cat, 2 dog's box! on 3 of the cat"
    assert steering(learner, busy) == pytest.approx(by_hand(learner, "cat", "dog", "box"), rel=1e-4)
    captions = ("cat <r> box", "the man and a woman <r> the stone wall at night")
    alone = [steering(learner, caption) for caption in captions]
    assert steering(learner, *captions) == pytest.approx(sum(alone) / 2, rel=1e-4)
    assert alone[0] != pytest.approx(alone[1], rel=1e-2)


def test_a_checkpoint_does_not_hold_the_whole_table(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    task = problem(base, exemplar_folder, "reversion", steps=2)
    checkpoints = eager_checkpoints(task, tmp_path)
    kept = counted_sizes(checkpoints)
    learn(Task(task, Method(base, "inside", task.settings, task.exemplars), checkpoints), tmp_path / "concept")
    assert max(kept) < 20_000  # the table alone has more than a hundred times as many bytes as the row


def counted_sizes(checkpoints: Any) -> list[int]:
    sizes, save = [], checkpoints.save

    def measured(state: Any) -> None:
        save(state)
        sizes.append((checkpoints.folder / "state.pt").stat().st_size)

    checkpoints.save = measured
    return sizes


def test_drawing_presumes_no_number_of_images_no_plain_words_and_no_seed_in_common(base: Base, tmp_path: Path) -> None:
    concept = made(base)
    pairs = [("Michael Jackson", "T-shirt"), ("cat {small}", "box"), ("a {tail} sign", "{head}"), ("dog", "a/b")]
    scenarios = [Scenario("inside", index, *pair, None, False) for index, pair in enumerate(pairs)]
    generate_folder(base, concept, scenarios, SETTINGS, tmp_path / "images", tmp_path / "scratch")
    records = read_records(tmp_path / "images")
    assert [record.prompt for record in records] == [f"{head} <r> {tail}" for head, tail in pairs]
    assert [record.file for record in records] == [f"{index:03d}.png" for index in range(4)]
    assert len({record.seed for record in records}) == 4
    asked = SETTINGS.model_dump() | {"base": base.id, "resolution": base.resolution}
    assert records[0].settings.items() >= asked.items()
    first, again, other = (
        drawn(base, concept, scenarios, SETTINGS.model_copy(update={"seed": seed}), tmp_path / place)
        for place, seed in (("images", 0), ("again", 0), ("other", 1))
    )
    assert first == again and not set(first) & set(other)


def drawn(base: Base, concept: Concept, scenarios: list[Scenario], settings: GenerateSettings, folder: Path) -> Any:
    """Return the pixels of the pictures that are drawn into `folder`."""
    generate_folder(base, concept, scenarios, settings, folder, folder.parent / "scratch")
    return [picture.tobytes() for picture in read_pictures(folder, read_records(folder))]


@pytest.mark.parametrize("name", METHODS)
def test_pictures_are_not_squashed_to_squares(name: str, base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[20:40, 50:70] = 255  # a square in the middle of an oblong
    Image.fromarray(picture).save(tmp_path / "oblong.png")
    exemplars = ExemplarSet("inside", (Exemplar(tmp_path / "oblong.png", ("cat {} box",)),), "")
    changes = {"prior_images": 0, "scale_variants": 0}
    task = replace(problem(base, exemplar_folder, name, **changes), exemplars=exemplars)
    (shown,) = build(task).training_pictures(tmp_path)
    seen = np.asarray(shown.image)[..., 0] > 127
    assert seen.any(0).sum() == seen.any(1).sum() == 20
