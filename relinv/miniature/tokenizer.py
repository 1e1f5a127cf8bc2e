"""A small tokenizer in CLIP's own format, in which each word of a given list is exactly one token."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

END = "</w>"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
Merge = tuple[str, str]


def build_tokenizer(words: Iterable[str], max_length: int) -> CLIPTokenizer:
    """Return a byte-level BPE tokenizer as CLIP has it, whose `words` are one token each.

    Any other text still tokenises, into pieces of one byte at the least. The ids depend on the set of words
    alone, not on their order. `max_length` is the length in tokens, with both ends, that captions are padded
    and cut to. Raises ValueError for a word that CLIP's pre-tokenizer would split (anything but lower-case
    letters).
    """
    from transformers import CLIPTokenizer

    merges = learn_merges(sorted(set(words)))
    tokens = [*_alphabet(), *(a + b for a, b in merges), BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=max_length)


def learn_merges(words: Iterable[str]) -> dict[Merge, int]:
    """Return merges, each with its rank, that reduce every one of `words` to one token.

    A merge added later ranks behind all earlier ones, so it cannot change how an earlier word is reduced: at
    each step of that word's reduction an earlier merge still applies.
    """
    ranks: dict[Merge, int] = {}
    for word in words:
        if not (word.isascii() and word.isalpha() and word.islower()):
            raise ValueError(f"The word '{word}' cannot be one token: only lower-case ASCII letters can.")
        while len(pieces := reduce_word(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    return ranks


def reduce_word(word: str, ranks: dict[Merge, int]) -> list[str]:
    """Return the pieces of `word` after byte-pair encoding: the adjacent pair of lowest rank merges first."""
    pieces = [*word[:-1], word[-1] + END]
    while candidates := [pair for pair in pairwise(pieces) if pair in ranks]:
        pieces = _merge(pieces, min(candidates, key=ranks.__getitem__))
    return pieces


def _merge(pieces: list[str], pair: Merge) -> list[str]:
    """Return `pieces` with each occurrence of `pair`, from the left, joined."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _alphabet() -> list[str]:
    """Return the 256 characters that stand for bytes, each inside a word and at its end."""
    from tokenizers.pre_tokenizers import ByteLevel

    characters = sorted(ByteLevel.alphabet())
    return [*characters, *(character + END for character in characters)]
