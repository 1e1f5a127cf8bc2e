"""How many tokens a caption takes, counted without loading a model."""

from __future__ import annotations

from collections.abc import Callable

from relinv.errors import UserError, reason
from relinv.hub import find_model, require_tokenizer
from relinv.settings import ModelSettings


def load_token_counter(model: ModelSettings) -> tuple[Callable[[str], int], int]:
    """Return a base model's token counter and its limit, both including the start and end tokens.

    The counter takes a caption template and counts its `{}` as the one token it becomes. Raises UserError
    if the model is unavailable, or its tokenizer cannot be read.
    """
    from transformers import CLIPTokenizer  # takes tokenizer.json and vocab.json + merges.txt; imports no torch

    folder = find_model(model.source, model.revision, ["tokenizer/*.json", "tokenizer/*.txt"]) / "tokenizer"
    require_tokenizer(folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file can make the libraries below raise many kinds
        raise UserError(
            f"The tokenizer of the base model '{model.source}' cannot be read ({reason(error)}): restore '{folder}'."
        ) from error

    def count(template: str) -> int:
        """Return how many tokens a template takes, start and end tokens included."""
        pieces = template.split("{}")
        tokens = sum(len(tokenizer(piece, add_special_tokens=False, verbose=False).input_ids) for piece in pieces)
        return tokens + len(pieces) - 1 + 2  # each {} becomes one token; plus the start and end tokens

    return count, tokenizer.model_max_length
