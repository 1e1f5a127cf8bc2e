"""The words of the miniature: each is one token of its tokenizer."""

from __future__ import annotations

from transformers import CLIPTokenizer

from relinv.learning.words import PREPOSITIONS, STOP_WORDS
from relinv.miniature.tokenizer import build_tokenizer
from relinv.world.captions import vocabulary
from relinv.world.entities import ENTITIES

MAX_TOKENS = 24


def miniature_tokenizer() -> CLIPTokenizer:
    """Return the tokenizer in which all words of the world, all prepositions and all stop words are one token each."""
    return build_tokenizer([*vocabulary(), *ENTITIES, *PREPOSITIONS, *STOP_WORDS], MAX_TOKENS)
