"""VQAScore: the model's probability of yes, computed by hand too, and what it refuses to load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from relinv.errors import UserError
from relinv.fingerprint import judge_fingerprint
from relinv.settings import JudgeSettings, VqaSettings
from relinv.vqa import VqaModel, check_vqa, find_vqa_model, load_vqa_model
from tests.tiny_vqa import TEMPLATE, WORDS, build_tiny_vqa

WEIGHTS = "model.safetensors"
TEXTS = ["cat", "cat inside box", "dog hugging cat inside cup", "box inside cat", "cup"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_vqa(tmp_path_factory.mktemp("vqa"))


@pytest.fixture(scope="module")
def vqa(folder: Path) -> VqaModel:
    return load(folder)


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "vqa"))


def load(folder: Path | str, precision: str = "fp32", device: str = "cpu") -> VqaModel:
    vqa = VqaSettings(model=str(folder), precision=precision)  # type: ignore[arg-type]
    found = load_vqa_model(JudgeSettings(model="a judge", pretrained=None, device=device, vqa=vqa))
    assert found is not None
    return found


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in TEXTS]


def by_hand(folder: Path, picture: Image.Image, text: str) -> float:
    """Return P(Yes) + P(yes) after one question, unpadded, from the logits at its last token."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    question = f'USER: <image> Does this figure show "{text}"? Please answer yes or no. ASSISTANT:'
    with torch.inference_mode():
        logits = model(**processor(images=picture, text=question, return_tensors="pt")).logits[0, -1].double()
    weights = logits.exp()
    yes = processor.tokenizer.convert_tokens_to_ids(["Yes", "yes"])
    assert processor.tokenizer.unk_token_id not in yes
    return float(weights[yes].sum() / weights.sum())


def test_the_probability_of_yes_is_that_of_the_first_token_of_the_answer(folder: Path, vqa: VqaModel) -> None:
    found = vqa.ask(pictures(), TEXTS, 2)
    assert found.shape == (5,) and found.dtype == np.float32
    np.testing.assert_allclose(
        found, [by_hand(folder, *pair) for pair in zip(pictures(), TEXTS, strict=True)], rtol=1e-4
    )


def test_answers_follow_picture_words_and_their_order(vqa: VqaModel) -> None:
    first, second, *_ = pictures()
    cases = [
        (first, "cat inside box"),
        (second, "cat inside box"),
        (first, "box inside cat"),
        (first, "dog inside box"),
    ]
    found = vqa.ask(*zip(*cases, strict=True), batch_size=4)  # type: ignore[arg-type,misc]
    assert np.diff(np.sort(found)).min() > 1e-4


def test_neither_batches_nor_their_order_change_an_answer(vqa: VqaModel) -> None:
    together = vqa.ask(pictures(), TEXTS, 5)  # questions of several lengths
    for batch_size in (1, 2, 100):
        np.testing.assert_allclose(vqa.ask(pictures(), TEXTS, batch_size), together, rtol=1e-4)
    np.testing.assert_allclose(vqa.ask(pictures()[::-1], TEXTS[::-1], 2)[::-1], together, rtol=1e-4)
    np.testing.assert_array_equal(vqa.ask(pictures(), TEXTS, 5), together)


def test_bf16_answers_nearly_the_same(folder: Path, vqa: VqaModel) -> None:
    rounded = load(folder, "bf16").ask(pictures(), TEXTS, 5)
    assert not np.array_equal(rounded, vqa.ask(pictures(), TEXTS, 5))
    np.testing.assert_allclose(rounded, vqa.ask(pictures(), TEXTS, 5), rtol=0.3)


def test_no_model_is_loaded_unless_one_is_named() -> None:
    assert load_vqa_model(JudgeSettings(model="a judge", pretrained=None, device="cuda:99")) is None


def test_a_model_in_neither_a_folder_nor_the_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match="There is no vision-language model folder 'data/some/where': build it, or name"
    ):
        load("data/some/where")
    values = {"model": "a judge", "pretrained": None, "device": "cpu"}
    check_vqa(JudgeSettings(**values))
    for name in ("data/some/where", "some/model"):  # a hub id, while the hub is not to be asked
        vqa = VqaSettings(model=name, precision="bf16")
        with pytest.raises(UserError, match=f"vision-language model (folder )?'{name}'"):
            check_vqa(JudgeSettings(**values | {"vqa": vqa}))
    with pytest.raises(
        UserError, match="The vision-language model 'some/model' is not a local folder and cannot be downloaded"
    ):
        load("some/model")


def test_a_hub_id_is_not_downloaded_by_a_check_and_a_folder_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    from_hub = MagicMock()
    monkeypatch.setattr("huggingface_hub.snapshot_download", from_hub)
    for name, told in (("some/model", nullcontext()), ("data/some/where", pytest.raises(UserError, match="no vision"))):
        vqa = VqaSettings(model=name, precision="bf16")
        with told:
            check_vqa(JudgeSettings(model="a judge", pretrained=None, device="cpu", vqa=vqa))
    from_hub.assert_not_called()


@pytest.mark.parametrize("use", [check_vqa, load_vqa_model])
def test_a_gpu_too_old_for_the_models_precision_is_told_before_it_is_loaded(
    use: Callable[[JudgeSettings], object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relinv.vqa.find_device", torch.device)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", MagicMock(side_effect=AssertionError))
    vqa = VqaSettings(model=str(folder), precision="bf16")
    with pytest.raises(UserError, match="'Tesla T4' is too old for bf16"):
        use(JudgeSettings(model="a judge", pretrained=None, device="cuda", vqa=vqa))


def test_code_beside_a_model_is_never_run(broken: Path, tmp_path: Path) -> None:
    (broken / "evil.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "processor_config.json"):
        config = json.loads((broken / name).read_text())
        own = {"AutoModelForImageTextToText": "evil.Evil", "AutoProcessor": "evil.Evil", "AutoConfig": "evil.Evil"}
        (broken / name).write_text(json.dumps(config | {"auto_map": own}))
    with suppress(UserError):
        load(broken)
    assert not (tmp_path / "was-run").exists()


def test_only_files_that_are_loaded_come_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_hub = MagicMock(return_value=str(folder))
    monkeypatch.setattr("huggingface_hub.snapshot_download", from_hub)
    assert find_vqa_model(VqaSettings(model="some/model", revision="abc", precision="bf16")) == folder
    assert from_hub.call_args.args == ("some/model",) and from_hub.call_args.kwargs["revision"] == "abc"
    loaded = ["config.json", "chat_template.jinja", "merges.txt", "tokenizer.model", "model-00001-of-00002.safetensors"]
    there = [*loaded, "pytorch_model.bin", "modeling.py", "README.md"]
    assert [*filter_repo_objects(there, allow_patterns=from_hub.call_args.kwargs["allow_patterns"])] == loaded


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
        (lambda folder: (folder / "config.json").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "processor_config.json").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "processor_config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot be loaded"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000]), "cannot be loaded"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "cannot be loaded"),
        (lambda folder: drop_weight(folder), r"lacks the weights .*lm_head"),
        (
            lambda folder: build_tiny_vqa(folder, WORDS.replace("yes", "").replace("Yes", "")),
            'no single token for "Yes"',
        ),
    ],
)
def test_a_damaged_model_is_told(broken: Path, damage: Any, message: str) -> None:
    damage(broken)
    with pytest.raises(UserError, match=f"The vision-language model '{broken}' .*{message}.*: restore it, or name an"):
        load(broken)


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (name,) = (name for name in weights if "lm_head" in name)
    save_file({other: tensor for other, tensor in weights.items() if other != name}, folder / WEIGHTS, {"format": "pt"})


def test_too_little_memory_is_told(folder: Path, vqa: VqaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    full = MagicMock(side_effect=torch.OutOfMemoryError)
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"too small for .*'.*vqa.*': .* lower score\.batch"),
    ):
        patch.setattr(vqa._network, "generate", full)
        vqa.ask(pictures(), TEXTS, 5)
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", full)
    with pytest.raises(UserError, match=r"too small for the vision.* set the precision in the judge's vqa to bf16"):
        load(folder)


def test_a_device_this_machine_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="The device 'cuda:99' is not available"):
        load(folder, device="cuda:99")


def test_the_judges_fingerprint_tells_the_vision_language_model_it_names(broken: Path) -> None:
    judge = JudgeSettings(model="ViT-L-14-quickgelu", pretrained="openai", device="cpu")

    def naming(model: str, revision: str | None = None) -> str:
        vqa = VqaSettings(model=model, revision=revision, precision="bf16")
        return judge_fingerprint(judge.model_copy(update={"vqa": vqa}))

    assert judge_fingerprint(judge) == "ViT-L-14-quickgelu/openai"
    assert naming("some/model") == "ViT-L-14-quickgelu/openai + some/model@main"
    assert naming("some/model", "abc") == "ViT-L-14-quickgelu/openai + some/model@abc"
    before = naming(str(broken))
    (broken / "chat_template.jinja").write_text(TEMPLATE + " ")
    assert before != naming(str(broken))
