"""The word lists are the published ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from relinv.learning.words import PREPOSITIONS, STOP_WORDS


def test_lists_have_the_published_sizes() -> None:
    assert len(set(PREPOSITIONS)) == len(PREPOSITIONS) == 56
    assert len(STOP_WORDS) == 127
    assert len(STOP_WORDS & set(PREPOSITIONS)) == 23


def test_lists_are_the_published_ones_word_by_word() -> None:
    """By the SHA-256 of the sorted words, a space between each two."""
    assert digest(PREPOSITIONS) == "a909ead4d79e12925f94f2a93276324da1cbddd3b5c71e2a8c991b38ed21a84e"
    assert digest(STOP_WORDS) == "cc397ed4bad427203e3c41acd7a7a74d9ffa4a9c7fc6319ece9cb4cd0a557694"


def digest(words: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(sorted(words)).encode()).hexdigest()


def test_words_that_yaml_could_mistake_are_words() -> None:
    assert {"on", "off"} <= set(PREPOSITIONS)
    assert {"on", "off", "no"} <= STOP_WORDS
    assert all(isinstance(word, str) for word in (*PREPOSITIONS, *STOP_WORDS))
