"""The word lists are the published ones."""

from __future__ import annotations

from relinv.learning.words import PREPOSITIONS, STOP_WORDS


def test_lists_have_the_published_sizes() -> None:
    assert len(set(PREPOSITIONS)) == len(PREPOSITIONS) == 56
    assert len(STOP_WORDS) == 127
    assert len(STOP_WORDS & set(PREPOSITIONS)) == 23


def test_words_that_yaml_could_mistake_are_words() -> None:
    assert {"on", "off"} <= set(PREPOSITIONS)
    assert {"on", "off", "no"} <= STOP_WORDS
    assert all(isinstance(word, str) for word in (*PREPOSITIONS, *STOP_WORDS))
