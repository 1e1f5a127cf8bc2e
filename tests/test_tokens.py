"""Captions are counted as the base model's own tokenizer counts them, in both of its file formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from relinv.errors import UserError
from relinv.settings import ModelSettings
from relinv.tokens import load_token_counter


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


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The tokenizer of the base model '.*' cannot be read"):
        load_token_counter(model(tmp_path / "nothing"))
