"""Perfusion's published checkpoints, from the latent-diffusion code base, read without running anything in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relinv.adapters.perfusion import DIRECTION, INPUT, Adapter
from relinv.errors import UserError
from relinv.exchange.tensor_files import floats, row
from relinv.exchange.token_files import Published

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base

KEYS = {"C_inv", "target_input", "embedding", "target_output"}
LAYER = re.compile(
    r"(?:^|\.)(?:(?P<side>input|output)_blocks\.(?P<index>\d+)|middle_block)\.1\."
    r"(?P<rest>transformer_blocks\.\d+\.attn2\.to_[kv])(?:\.target_output)?$"
)


def read_perfusion(content: Mapping[str, Any], file: Path, base: Base) -> Published:
    """Return the concept in a published .ckpt, with its layers renamed as in diffusers, for use with `base`.

    `content` is what `file` holds. The gate is the published one for drawing; outputs o_K and o_V are (tokens, out).
    Raises UserError if the content is of another kind, or does not fit the base.
    """
    try:
        name, values, superclass = _embedding(content["embedding"], file, base)
        start, inverse = (floats(content[part], part, file) for part in ("target_input", "C_inv"))
        learned = content["target_output"].items()
        outputs = {diffusers_name(layer): floats(output, layer, file) for layer, output in learned}
        tensors = {INPUT: start, DIRECTION: inverse @ start, **outputs}
    except (LookupError, AttributeError, TypeError, RuntimeError, ValueError, StopIteration):
        raise UserError(f"'{file}' is not a checkpoint of Perfusion with {', '.join(sorted(KEYS))}.") from None
    options = {"superclass": superclass, "beta": 0.7, "tau": 0.15, "locking": "local"}
    options["second_moment"] = hashlib.sha256(inverse.numpy().tobytes()).hexdigest()
    Adapter(base, None, tensors, options)  # raises UserError if it does not fit
    return Published(name, values, adapter="perfusion", options=options, tensors=tensors)


def diffusers_name(layer: str) -> str:
    """Return the name in diffusers' UNet of a projection in the original one; ValueError if there is none.

    input_blocks 1, 2, 4, 5, 7, 8 are two attentions per down block; output_blocks 3 to 11 are three per up block.
    """
    found = LAYER.search(layer)
    if not found:
        raise ValueError(layer)
    if found["side"] is None:
        return f"mid_block.attentions.0.{found['rest']}"
    shift, side = (1, "down") if found["side"] == "input" else (0, "up")
    block, attention = divmod(int(found["index"]) - shift, 3)
    return f"{side}_blocks.{block}.attentions.{attention}.{found['rest']}"


def _embedding(embedding: Mapping[str, Any], file: Path, base: Base) -> tuple[str, torch.Tensor, str]:
    """Return the one token's name, its row (dim,) and the word it started from; UserError if that is unusable."""
    name, rows = next(iter(embedding["string_to_param"].items()))
    words = embedding["initializer_words"]
    word = words if isinstance(words, str) else next(iter(words), "")
    tokens = base.tokenizer(word, add_special_tokens=False).input_ids if isinstance(word, str) else []
    if not 0 < len(tokens) <= base.tokenizer.model_max_length - 2:  # minus a prompt's start and end tokens
        raise UserError(f"'{file}' names no word that its token started from, whose keys it keeps: it cannot be used.")
    return str(name), row(rows, str(name), file), word
