"""The steering loss's word lists: prepositions attract the learned token, stop words never repel it."""

from __future__ import annotations

from pathlib import Path

from relinv.files import read_yaml

_LISTS = read_yaml(Path(__file__).with_name("words.yaml"), "word list")

PREPOSITIONS: tuple[str, ...] = tuple(_LISTS["prepositions"])
"""The 56 basis prepositions, in alphabetical order."""

STOP_WORDS: frozenset[str] = frozenset(_LISTS["stop_words"])
"""The 127 common English words that are no content words of a caption; 23 are prepositions too."""
