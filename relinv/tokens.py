"""How many tokens a caption takes, counted without loading a model."""

from __future__ import annotations

from collections.abc import Callable

from relinv.hub import TOKENIZER, find_model, load_tokenizer
from relinv.settings import ModelSettings


def load_token_counter(model: ModelSettings) -> tuple[Callable[[str], int], int]:
    """Return a base model's token counter and its limit, both including the start and end tokens.

    The counter takes a caption template and counts its `{}` as the one token it becomes. Raises UserError
    if the model is unavailable, or its tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(find_model(model.source, model.revision, TOKENIZER) / "tokenizer")

    def count(template: str) -> int:
        """Return how many tokens a template takes, start and end tokens included."""
        pieces = template.split("{}")
        tokens = sum(len(tokenizer(piece, add_special_tokens=False, verbose=False).input_ids) for piece in pieces)
        return tokens + len(pieces) - 1 + 2  # each {} becomes one token; plus the start and end tokens

    return count, tokenizer.model_max_length
