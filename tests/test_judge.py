"""The judge: what it embeds, and everything it refuses to load in silence."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock, call

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import T5Tokenizer

from relinv.benchmark import load_benchmark
from relinv.errors import UserError
from relinv.exemplars import load_image, read_exemplars
from relinv.fingerprint import judge_fingerprint
from relinv.judge import Judge, check_judge, load_judge
from relinv.learning.words import PREPOSITIONS, STOP_WORDS
from relinv.scoring import ImageFolder, score_images
from relinv.settings import JudgeSettings
from tests.records import record
from tests.tiny import WORDS
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


def edit_config(folder: Path, tower: str, **changes: float) -> None:
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
    monkeypatch.setattr(judge, "require_read", encoded.extend)
    first = judge.encode_texts(["cat", "dog", "cat"])
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(judge.encode_texts(["dog"])[0], first[1])
    assert encoded == ["cat", "dog"]


def test_a_gpu_may_use_kernels_whose_gradients_alone_are_not_deterministic(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = MagicMock(return_value=nullcontext())
    monkeypatch.setattr("relinv.judge.deterministic", asked)
    judge.encode_images(pictures(), 5)
    judge.encode_texts(["a text of its own"])
    assert asked.call_args_list == [call(torch.device("cpu"), backward=False)] * 2


def test_many_texts_are_all_encoded(folder: Path) -> None:
    words = sorted({*WORDS, *PREPOSITIONS, *STOP_WORDS})
    texts = [f"{first} {second}" for first in words for second in words][:300]  # more than go through at once
    alone = np.concatenate([load(folder).encode_texts([texts[place]]) for place in (0, 255, 256, 299)])
    np.testing.assert_allclose(load(folder).encode_texts(texts)[[0, 255, 256, 299]], alone, atol=1e-6)


def test_patches_dropped_in_training_are_not_dropped_in_judging(broken: Path, judge: Judge) -> None:
    edit_config(broken, "vision_cfg", patch_dropout=0.5)
    np.testing.assert_array_equal(load(broken).encode_images(pictures(), 5), judge.encode_images(pictures(), 5))


def test_a_judge_that_uses_open_clips_own_tokenizer_needs_none_in_its_folder(broken: Path) -> None:
    path = broken / "open_clip_config.json"
    config = json.loads(path.read_text())
    del config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    path.write_text(json.dumps(config))
    (broken / "tokenizer.json").unlink()
    assert check_judge(JudgeSettings(model=str(broken), pretrained=None, device="cpu")) == broken / WEIGHTS


@pytest.mark.parametrize("name", ["vocab.json", "spiece.model"])
def test_a_tokenizer_of_an_older_form_is_one_too(name: str, broken: Path) -> None:
    (broken / "tokenizer.json").rename(broken / name)
    assert check_judge(JudgeSettings(model=str(broken), pretrained=None, device="cpu")) == broken / WEIGHTS


@pytest.mark.parametrize(
    "name",
    ["open_clip_config.json", WEIGHTS, "open_clip_pytorch_model.bin", "merges.txt", "spiece.model", "chat.jinja"],
)
def test_the_fingerprint_follows_each_file_that_a_model_may_load(name: str, tmp_path: Path) -> None:
    found = set()
    for content in ("first", "second"):
        (tmp_path / name).write_text(content)
        (tmp_path / "README.md").write_text(content)  # which none does
        found.add(judge_fingerprint(JudgeSettings(model=str(tmp_path), pretrained=None, device="cpu")))
    assert len(found) == 2
    (tmp_path / "README.md").unlink()
    assert judge_fingerprint(JudgeSettings(model=str(tmp_path), pretrained=None, device="cpu")) in found


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


@pytest.mark.parametrize("config", ["[]", '{"model_cfg": 3}', '{"model_cfg": {"text_cfg": []}}'])
def test_a_configuration_that_is_none_is_refused(broken: Path, config: str) -> None:
    (broken / "open_clip_config.json").write_text(config)
    with pytest.raises(UserError, match=r"in .*open_clip_config\.json: it must be a section of named values"):
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
    weights = load_file(broken / WEIGHTS)
    save_file({f"module.{name}": tensor for name, tensor in weights.items()}, broken / WEIGHTS)  # a parallel training's
    with pytest.raises(UserError, match=r"do not fit their architecture: '.*positional_embedding' is"):
        load(broken)
    torch.save(weights, broken / "open_clip_pytorch_model.bin")
    (broken / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"do not fit their architecture: '.*positional_embedding' is"):
        load(broken)


def test_weights_that_may_not_be_read_are_not_called_damaged(
    broken: Path, make_unreadable: Callable[[Path], None]
) -> None:
    make_unreadable(broken / WEIGHTS)
    with pytest.raises(PermissionError):
        load(broken)


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("data/nowhere", None, "folder 'data/nowhere' does not exist"),
        ("ViT-B-23", "openai", "Unknown open_clip model 'ViT-B-23'. Did you mean 'ViT-B-32'"),
        ("ViT-B-32-quickgelu", "opnai", "Did you mean 'openai'"),
        ("ViT-B-32-quickgelu", None, "is not a folder: set its pretrained to one of .*openai"),
        ("ViT-L-14", "openai", "trained with QuickGELU.*set the judge's model to 'ViT-L-14-quickgelu'"),
    ],
)
def test_wrong_names_are_refused_before_any_download(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(model, pretrained)


def test_every_published_judge_may_be_used_under_the_name_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # a check asks for nothing
    for name, tag in open_clip.list_pretrained():
        judge = JudgeSettings(model=name, pretrained=tag, device="cpu")
        weights, architecture = open_clip.get_pretrained_cfg(name, tag), open_clip.get_model_config(name)
        if weights.get("quick_gelu") and not architecture.get("quick_gelu"):
            with pytest.raises(UserError, match="trained with QuickGELU") as refused:
                check_judge(judge)
            judge = judge.model_copy(update={"model": str(refused.value).rstrip(".").split("'")[-2]})
        assert check_judge(judge) is None


def test_weights_that_are_not_here_are_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = r"'RN50-quickgelu/openai' is not in the local cache and cannot be .*: .*, run `relinv download` first"
    with pytest.raises(UserError, match=said):
        check_judge(JudgeSettings(model="RN50-quickgelu", pretrained="openai", device="cpu"))
    with pytest.raises(UserError, match=said):
        load("RN50-quickgelu", "openai")


def test_a_tokenizer_that_is_not_here_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("open_clip.download_pretrained", MagicMock())  # the weights are here
    with pytest.raises(UserError, match=r"'ViT-B-16-SigLIP/webli' is not in the local .*, run `relinv download` first"):
        check_judge(JudgeSettings(model="ViT-B-16-SigLIP", pretrained="webli", device="cpu"))


def test_a_hub_that_may_be_asked_is_asked_only_for_the_weights_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    full = MagicMock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", full)
    assert check_judge(JudgeSettings(model="RN50-quickgelu", pretrained="openai", device="cpu")) is None
    full.assert_not_called()
    with pytest.raises(OSError, match="No space left on device"):  # which the command line explains
        load("RN50-quickgelu", "openai")


def test_a_tag_beside_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="set its 'pretrained' to null"):
        load(folder, "openai")


def test_a_device_this_machine_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="The device 'cuda:99' is not available"):
        load_judge(JudgeSettings(model=str(folder), pretrained=None, device="cuda:99"))


# SigLIP, which open_clip builds of other parts: timm's vision tower, a text tower and a tokenizer of its own


def build_tiny_siglip(folder: Path) -> Path:
    """Save a SigLIP of random weights into `folder`, configured as open_clip's are; return `folder`."""
    words = sorted({*WORDS, *PREPOSITIONS, *STOP_WORDS})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in words)]
    T5Tokenizer(pieces, pad_token="</s>", extra_ids=0).save_pretrained(folder)
    text = {"context_length": 16, "vocab_size": len(pieces), "hf_tokenizer_name": "local", "width": 64, "heads": 2,
            "layers": 1, "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True,
            "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}  # fmt: skip
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "map",
              "timm_proj": "none"}  # fmt: skip
    model = {"embed_dim": 64, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    half = [0.5, 0.5, 0.5]
    preprocess = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = open_clip.CustomTextCLIP(**{name: value for name, value in model.items() if name != "custom_text"})
        for table in (built.text.token_embedding.weight, built.text.positional_embedding):
            torch.nn.init.normal_(table)  # open_clip's own start is so small that texts hardly differ
    save_file(built.state_dict(), folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return load(build_tiny_siglip(tmp_path_factory.mktemp("siglip")))


def test_a_siglip_embeds_unit_vectors(siglip: Judge) -> None:
    images, texts = siglip.encode_images(pictures(), 2), siglip.encode_texts(["cat inside box", "box inside cat"])
    assert images.shape == (5, 64) and texts.shape == (2, 64)
    np.testing.assert_allclose(np.linalg.norm([*images, *texts], axis=1), 1, atol=1e-6)
    assert not np.allclose(texts[0], texts[1], atol=1e-3)  # word order reaches the embedding
    assert siglip.resolution == 160


def test_a_siglip_squashes_pictures_and_cleans_texts_as_its_configuration_says(siglip: Judge) -> None:
    wide = pictures()[0].resize((320, 200), Image.Resampling.BICUBIC)
    squashed, cut = wide.resize((160, 160), Image.Resampling.BICUBIC), wide.crop((60, 0, 260, 200))
    seen = siglip.encode_images([wide, squashed, cut], 3)
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-3)
    assert not np.allclose(seen[0], seen[2], atol=1e-2)
    np.testing.assert_allclose(*siglip.encode_texts(["cat inside box", "Cat, inside_box!"]), atol=1e-6)


def test_a_text_that_a_siglip_would_cut_is_refused(siglip: Judge) -> None:
    siglip.encode_texts(["cat " * 15])  # with its end, all 16 tokens
    with pytest.raises(UserError, match="reads 16 tokens at most"):
        siglip.encode_texts(["cat " * 16])


def test_a_siglip_scores(siglip: Judge, exemplar_folder: Path) -> None:
    exemplars = read_exemplars(exemplar_folder)
    shown = [load_image(exemplar.path, siglip.resolution) for exemplar in exemplars.exemplars[:2]]
    drawn = ImageFolder([record(0), record(1, tail="cup")], shown, exemplars)
    rows = score_images(drawn, load_benchmark("data/benchmark/miniature.yaml"), siglip, batch_size=2)
    np.testing.assert_allclose(rows["exemplar_similarity"], 1, atol=1e-4)  # each is an exemplar
    assert rows["relation_score"].nunique() == 2 and rows["relation_score"].between(-1, 1).all()
    assert rows[["scene_accuracy", "relation_accuracy", "entity_accuracy"]].isin([0, 1]).all(axis=None)
