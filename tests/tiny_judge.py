"""A complete open_clip judge of random weights, in the folder layout that open_clip's "local-dir:" names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from relinv.learning.words import PREPOSITIONS, STOP_WORDS
from relinv.miniature.tokenizer import build_tokenizer
from tests.tiny import WORDS

TOKENS = 24
DIM = 16
SIDE = 32  # pixels


def build_tiny_judge(folder: Path) -> Path:
    """Save a random-weight open_clip model, its tokenizer and configuration into `folder`; return `folder`.

    The weights are the same each time. `text_cfg.hf_tokenizer_name` makes open_clip read the tokenizer beside
    them.
    """
    tokenizer = build_tokenizer({*WORDS, *PREPOSITIONS, *STOP_WORDS}, TOKENS)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = model_config(len(tokenizer))
    preprocess = {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def model_config(vocabulary: int) -> dict[str, Any]:
    """Return open_clip's configuration of a judge with one layer a tower."""
    return {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": TOKENS,
            "vocab_size": vocabulary,
            "hf_tokenizer_name": "local",
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
