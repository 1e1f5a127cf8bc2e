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
from transformers import CLIPTokenizer

from relinv.errors import UserError
from relinv.hub import find_tokenizer
from relinv.settings import ModelSettings
from relinv.tokens import load_token_counter

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
    count, limit = load_token_counter(model(as_vocabulary_and_merges(tiny_base, tmp_path) if old else tiny_base))
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base, subfolder="tokenizer")
    expected = tokenizer(template.replace("{}", "and")).input_ids  # "and", too, is one token
    assert count(template) == len(expected)
    assert limit == tokenizer.model_max_length


def test_a_caption_that_is_too_long_is_counted_without_a_warning() -> None:
    code = (
        "from relinv.params import load_params\n"
        "from relinv.tokens import load_token_counter\n"
        "count, limit = load_token_counter(load_params().model())\n"
        "print(count('cat ' * 200 + '{} box') > limit)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"The tokenizer in '.*' cannot be loaded .* restore"):
        load_token_counter(model(tmp_path))
    with pytest.raises(UserError, match=r"There is no base model folder '.*nothing'"):
        load_token_counter(model(tmp_path / "nothing"))


def test_of_a_model_on_the_hub_only_the_tokenizer_is_fetched(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = MagicMock(return_value=str(tiny_base))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    of_hub = model(tiny_base).model_copy(update={"source": "some/model", "revision": "abc"})
    count, _ = load_token_counter(of_hub)
    assert count("cat {} box") == load_token_counter(model(tiny_base))[0]("cat {} box")
    assert download.call_args.args == ("some/model",) and download.call_args.kwargs["revision"] == "abc"
    assert all(pattern.startswith("tokenizer/") for pattern in download.call_args.kwargs["allow_patterns"])


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
