"""The faults of the published code, by the number they have in its description: ours has none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relinv.benchmark import Scenario
from relinv.diffusion.bases import Base
from relinv.diffusion.concept import EMBEDDING, Concept, load_concept
from relinv.exemplars import load_image
from relinv.generation import generate_folder
from relinv.images import read_records
from relinv.learning.inversion import invert_relation, learn
from relinv.methods.reversion import Method, content_ids
from relinv.settings import GenerateSettings, ValidateSettings, load_params
from relinv.validation import validate_folder
from tests.dying import eager_checkpoints
from tests.inverting import problem
from tests.test_concept import made

CHECKS = ValidateSettings(minimum_images=4, minimum_side=32, duplicate_difference=0.0)
SETTINGS = GenerateSettings(pairs="all", seed=0, steps=1, guidance_scale=2.0, scheduler="ddim", batch_size=3)


@pytest.fixture
def learned(base: Base, exemplar_folder: Path, tmp_path: Path) -> Path:
    invert_relation(problem(base, exemplar_folder, "reversion"), tmp_path / "concept", tmp_path / "scratch")
    return tmp_path / "concept"


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """Return a list that grows by what each call of a method is first given."""
    calls, function = [], getattr(owner, name)

    def call(first: Any, *rest: Any, **named: Any) -> Any:
        calls.append(first)
        return function(first, *rest, **named)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_1_the_optimiser_holds_one_row(base: Base, exemplar_folder: Path) -> None:
    task = problem(base, exemplar_folder, "reversion")
    method = Method(base, "inside", task.settings)
    assert sum(tensor.numel() for group in method.groups() for tensor in group["params"]) == base.dim


def test_2_nothing_shrinks_the_row_by_default() -> None:
    for method in ("textual_inversion", "reversion"):
        assert load_params().section(f"invert.{method}", dict)["weight_decay"] == 0


def test_3_each_picture_is_encoded_once(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = counted(monkeypatch, base.vae, "encode")
    invert_relation(problem(base, exemplar_folder, "reversion", steps=12), tmp_path / "concept", tmp_path / "scratch")
    assert len(encoded) == 4


def test_4_each_caption_is_tokenised_once_and_no_device_is_presumed(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised = counted(monkeypatch, base, "tokenize")
    task = problem(base, exemplar_folder, "textual_inversion", steps=30)
    task = task.__class__(**{**vars(task), "preview": task.preview.model_copy(update={"prompts": []})})
    invert_relation(task, tmp_path / "concept", tmp_path / "scratch")
    assert base.device.type == "cpu"
    assert len(tokenised) == len({prompt for (prompt,) in tokenised}) <= 8


def test_5_and_13_captions_are_checked_before_anything_is_learned(exemplar_folder: Path, tmp_path: Path) -> None:
    captions = json.loads((exemplar_folder / "text.json").read_text())
    captions["0.png"] = ["cat in box"]
    captions["9.png"] = captions.pop("1.png")
    for path in exemplar_folder.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "text.json").write_text(json.dumps(captions))
    verdict = validate_folder(tmp_path, CHECKS, count_tokens=len, token_limit=77, resolution=64)
    text = "\n".join(verdict.errors)
    assert "has 0 '{}'" in text and "names '9.png', which is not there" in text and "1.png has no captions" in text


def test_6_and_7_only_the_captions_words_repel_each_once(base: Base) -> None:
    ids = content_ids(base, "cat <r> cat, 2 dogs! on 3 of the cat")
    assert base.tokenizer.pad_token_id not in ids
    assert len(ids) == len(set(ids))
    text = "".join(base.tokenizer.batch_decode([[index] for index in ids]))
    assert set(text.replace(" ", "")) == set("catdogs")


# 8: tests/test_sd15.py, where the vocabulary is CLIP's.


def test_9_a_checkpoint_is_small(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    task = problem(base, exemplar_folder, "reversion", steps=2)
    checkpoints = eager_checkpoints(task, tmp_path)
    kept = counted_sizes(checkpoints)
    learn(task, Method(base, "inside", task.settings), tmp_path / "concept", checkpoints)
    assert max(kept) < 20_000  # the table alone has more than a hundred times as many bytes as the row


def counted_sizes(checkpoints: Any) -> list[int]:
    sizes, save = [], checkpoints.save

    def measured(state: Any) -> None:
        save(state)
        sizes.append((checkpoints.folder / "state.pt").stat().st_size)

    checkpoints.save = measured
    return sizes


def test_10_previews_come_as_often_as_asked(learned: Path) -> None:
    names = sorted(path.name for path in (learned / "previews").iterdir())
    assert names == ["step_0004.png", "step_0006.png"]  # every 4 of 6 steps, and the last


def test_11_the_artefact_holds_the_row_and_no_table(base: Base, learned: Path) -> None:
    assert (learned / EMBEDDING).stat().st_size < 4 * base.dim + 4096


def test_12_any_number_of_images_any_words_and_a_seed_each(base: Base, tmp_path: Path) -> None:
    concept = made(base)
    pairs = [("Michael Jackson", "T-shirt"), ("cat {small}", "box"), ("dog", "a/b")]
    scenarios = [Scenario("inside", index, *pair, None, False) for index, pair in enumerate(pairs)]
    generate_folder(base, concept, scenarios, SETTINGS, tmp_path / "images", tmp_path / "scratch")
    records = read_records(tmp_path / "images")
    assert [record.prompt for record in records] == [f"{head} <r> {tail}" for head, tail in pairs]
    assert [record.file for record in records] == ["000.png", "001.png", "002.png"]
    assert len({record.seed for record in records}) == 3
    assert {"steps", "guidance_scale", "scheduler", "base"} <= set(records[0].settings)


def test_14_proportions_are_kept(tmp_path: Path) -> None:
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[20:40, 50:70] = 255  # a square in the middle of an oblong
    Image.fromarray(picture).save(tmp_path / "oblong.png")
    seen = np.asarray(load_image(tmp_path / "oblong.png", 60))[..., 0] > 127
    assert seen.any(0).sum() == seen.any(1).sum() == 20


# 15: tests/test_methods_contract.py, killed and resumed, to the same bytes.


def test_a_row_is_finite_and_of_the_bases_width(base: Base, learned: Path) -> None:
    concept: Concept = load_concept(learned, base)
    assert concept.embedding is not None and concept.embedding.shape == (base.dim,)
    assert torch.isfinite(concept.embedding).all()
