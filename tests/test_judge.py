"""The judge: what it embeds, and everything it refuses to load in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from relinv.errors import UserError
from relinv.judge import Judge, load_judge
from relinv.settings import JudgeSettings
from tests.tiny_judge import DIM, SIDE, build_tiny_judge

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def judge(folder: Path) -> Judge:
    return load(folder)


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy of the judge's folder, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "judge"))


def load(folder: Path | str, pretrained: str | None = None) -> Judge:
    return load_judge(JudgeSettings(model=str(folder), pretrained=pretrained, device="cpu"))


def edit_config(folder: Path, tower: str, **changes: int) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"][tower].update(changes)
    path.write_text(json.dumps(config))


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(5)]


def test_too_little_memory_is_not_laid_to_the_judge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.create_model_from_pretrained", MagicMock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        load(folder)


def test_embeddings_are_unit_vectors(judge: Judge) -> None:
    images, texts = (
        judge.encode_images(pictures(), 2),
        judge.encode_texts(["cat inside box", "box inside cat"]),
    )
    assert images.shape == (5, DIM) and texts.shape == (2, DIM)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    assert abs(texts[0] @ texts[1]) < 0.999  # word order reaches the embedding
    assert judge.resolution == SIDE


def test_batches_change_no_embedding(judge: Judge) -> None:
    np.testing.assert_allclose(judge.encode_images(pictures(), 1), judge.encode_images(pictures(), 5), atol=1e-5)


def test_each_distinct_text_is_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, encoded = load(folder), []
    tokenize = judge._tokenize
    monkeypatch.setattr(judge, "_tokenize", lambda texts: (encoded.extend(texts), tokenize(texts))[1])
    first = judge.encode_texts(["cat", "dog", "cat"])
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(judge.encode_texts(["dog"])[0], first[1])
    assert encoded == ["cat", "dog"]


def test_the_checkpoint_itself_is_what_scores(broken: Path, judge: Judge) -> None:
    weights = load_file(broken / WEIGHTS)
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, broken / WEIGHTS)
    assert not np.allclose(load(broken).encode_texts(["cat"]), judge.encode_texts(["cat"]))


def test_weights_in_a_torch_file_load_too(broken: Path, judge: Judge) -> None:
    torch.save(load_file(broken / WEIGHTS), broken / "open_clip_pytorch_model.bin")
    (broken / WEIGHTS).unlink()
    np.testing.assert_array_equal(load(broken).encode_texts(["cat"]), judge.encode_texts(["cat"]))


def test_a_text_that_would_be_cut_is_refused(judge: Judge) -> None:
    judge.encode_texts(["cat " * 22])  # with both ends, all 24 tokens
    with pytest.raises(UserError, match="reads 24 tokens at most"):
        judge.encode_texts(["cat " * 23])


def test_missing_weights_are_refused(broken: Path) -> None:
    (broken / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"is incomplete: put open_clip_config.json and {WEIGHTS}"):
        load(broken)


def test_a_missing_tokenizer_is_refused_and_not_made_up(broken: Path) -> None:
    (broken / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"lacks its tokenizer: put tokenizer\.json"):
        load(broken)


def test_damaged_weights_are_refused(broken: Path) -> None:
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(broken)


def test_weights_of_another_architecture_are_refused(broken: Path) -> None:
    edit_config(broken, "text_cfg", layers=2)
    with pytest.raises(UserError, match=r"cannot be loaded.*Missing key"):
        load(broken)


@pytest.mark.parametrize(
    ("tower", "change"), [("vision_cfg", {"image_size": 64}), ("text_cfg", {"context_length": 30})]
)
def test_position_embeddings_are_never_stretched(broken: Path, tower: str, change: dict[str, int]) -> None:
    edit_config(broken, tower, **change)
    with pytest.raises(UserError, match=r"do not fit their architecture: '.*positional_embedding' is"):
        load(broken)


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("data/nowhere", None, "folder 'data/nowhere' does not exist"),
        ("ViT-B-23", "openai", "Unknown open_clip model 'ViT-B-23'. Did you mean 'ViT-B-32'"),
        ("ViT-B-32-quickgelu", "opnai", "Did you mean 'openai'"),
        ("ViT-B-32-quickgelu", None, "Available: .*openai"),
        ("ViT-L-14", "openai", "trained with QuickGELU.*set the judge's model to 'ViT-L-14-quickgelu'"),
    ],
)
def test_wrong_names_are_refused_before_any_download(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(model, pretrained)


def test_a_tag_beside_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="set its 'pretrained' to null"):
        load(folder, "openai")


def test_a_device_this_machine_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="The device 'cuda:99' is not available"):
        load_judge(JudgeSettings(model=str(folder), pretrained=None, device="cuda:99"))
