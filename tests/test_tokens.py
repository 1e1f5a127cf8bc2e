"""Captions are counted as the base model's own tokenizer counts them, in both of its file formats."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from transformers import CLIPTokenizer

from relinv.errors import UserError
from relinv.hub import base_tokenizer, find_tokenizer
from relinv.settings import ModelSettings
from relinv.validation import count_tokens

COMMIT = "0123456789" * 4


def model(source: Path) -> ModelSettings:
    return ModelSettings(source=str(source), revision=None, device="cpu", precision="fp32", resolution=64)


def as_vocabulary_and_merges(base: Path, folder: Path) -> Path:
    """Return a copy of a base's tokenizer in the older format: vocab.json, merges.txt and its settings."""
    old = folder / "tokenizer"
    old.mkdir(parents=True)
    content = json.loads((base / "tokenizer" / "tokenizer.json").read_text())["model"]
    (old / "vocab.json").write_text(json.dumps(content["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["merges"]]
    (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    shutil.copy(base / "tokenizer" / "tokenizer_config.json", old)
    return folder


@pytest.mark.parametrize("template", ["cat {} box", "a photo of a cat {} a box, in the snow!", "zebra {} Box"])
@pytest.mark.parametrize("old", [False, True])
def test_count_is_the_length_the_text_encoder_gets(tiny_base: Path, tmp_path: Path, template: str, old: bool) -> None:
    loaded = base_tokenizer(model(as_vocabulary_and_merges(tiny_base, tmp_path) if old else tiny_base))
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base, subfolder="tokenizer")
    expected = tokenizer(template.replace("{}", "and")).input_ids  # "and", too, is one token
    assert count_tokens(template, loaded) == len(expected)
    assert loaded.model_max_length == tokenizer.model_max_length


def test_a_caption_that_is_too_long_is_counted_without_a_warning() -> None:
    code = (
        "from relinv.hub import base_tokenizer\n"
        "from relinv.params import load_params\n"
        "from relinv.validation import count_tokens\n"
        "tokenizer = base_tokenizer(load_params().model())\n"
        "print(count_tokens('cat ' * 200 + '{} box', tokenizer) > tokenizer.model_max_length)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"The tokenizer in '.*' cannot be loaded .* restore"):
        base_tokenizer(model(tmp_path))
    with pytest.raises(UserError, match=r"There is no base model folder '.*nothing'"):
        base_tokenizer(model(tmp_path / "nothing"))


@pytest.mark.parametrize("error", [PermissionError, MemoryError])
def test_a_tokenizer_that_cannot_be_read_here_is_not_called_damaged(
    error: type[Exception], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.CLIPTokenizer.from_pretrained", MagicMock(side_effect=error))
    with pytest.raises(error):
        base_tokenizer(model(tiny_base))


def test_a_tokenizer_that_says_no_limit_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base / "tokenizer", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer/tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["model_max_length"]
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"The tokenizer in '.*' does not say how many tokens .*: restore"):
        base_tokenizer(model(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match="does not say how many tokens"):
        base_tokenizer(model(tmp_path))


def test_of_a_model_on_the_hub_only_the_tokenizer_is_fetched(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = MagicMock(return_value=str(tiny_base))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    of_hub = model(tiny_base).model_copy(update={"source": "some/model", "revision": "abc"})
    assert base_tokenizer(of_hub).get_vocab() == base_tokenizer(model(tiny_base)).get_vocab()
    assert download.call_args.args == ("some/model",) and download.call_args.kwargs["revision"] == "abc"
    tokenizer = [f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json")]
    there = [*tokenizer, "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "model_index.json"]
    assert [*filter_repo_objects(there, allow_patterns=download.call_args.kwargs["allow_patterns"])] == tokenizer


def test_a_tokenizer_is_found_without_a_download_if_it_is_here(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_tokenizer(str(tiny_base), None) == tiny_base / "tokenizer"
    assert find_tokenizer("some/model", None) is None and find_tokenizer("/no/folder", None) is None
    kept = tmp_path / "models--some--model"
    snapshot = kept / "snapshots" / COMMIT
    (snapshot / "tokenizer").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = MagicMock(wraps=huggingface_hub.snapshot_download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    assert find_tokenizer("some/model", COMMIT) is None  # a download that has not come to it
    assert asked.call_args.kwargs["local_files_only"]
    shutil.copytree(tiny_base / "tokenizer", snapshot / "tokenizer", dirs_exist_ok=True)
    assert find_tokenizer("some/model", COMMIT) == snapshot / "tokenizer"


def test_a_tokenizer_is_found_though_a_part_of_the_model_that_is_never_run_is_not_here(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = pytest.importorskip("huggingface_hub._tree_cache")  # what newer ones keep of all a model has on the hub
    kept = tmp_path / "models--some--model"
    tokenizer = Path(shutil.copytree(tiny_base / "tokenizer", kept / "snapshots" / COMMIT / "tokenizer"))
    names = [*(f"tokenizer/{file.name}" for file in tokenizer.iterdir()), "v1-5-pruned.ckpt"]
    entry = listing.TreeCacheEntry(size=1, blob_id="0" * 40, lfs_sha256=None, lfs_size=None, xet_hash=None)
    listing.write_tree_cache(str(kept), COMMIT, dict.fromkeys(names, entry))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_tokenizer("some/model", COMMIT) == tokenizer
