"""The small tokenizer: one token a word, any text accepted, the same ids after saving."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from relinv.learning.words import PREPOSITIONS, STOP_WORDS
from relinv.miniature.tokenizer import build_tokenizer

WORDS = {*PREPOSITIONS, *STOP_WORDS, "cat", "cats", "catbox", "boxcat", "banana", "hanging", "overhang"}


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(WORDS, max_length=24)


def test_each_word_is_one_token(tokenizer: CLIPTokenizer) -> None:
    ids = {word: tokenizer(word, add_special_tokens=False).input_ids for word in WORDS}
    assert {word for word, pieces in ids.items() if len(pieces) != 1} == set()
    assert len({pieces[0] for pieces in ids.values()}) == len(WORDS)


def test_any_text_tokenises_and_comes_back(tokenizer: CLIPTokenizer) -> None:
    text = "a zebra, café & 3 crêpes!"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id not in ids  # no unknown piece
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_captions_are_framed_and_padded_as_clip_does(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("Cat inside", padding="max_length").input_ids
    cat, inside = tokenizer("cat inside", add_special_tokens=False).input_ids
    assert ids == [tokenizer.bos_token_id, cat, inside, *[tokenizer.eos_token_id] * 21]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1


def test_ids_do_not_depend_on_the_order_of_words(tokenizer: CLIPTokenizer) -> None:
    assert build_tokenizer(sorted(WORDS, reverse=True), max_length=24).get_vocab() == tokenizer.get_vocab()


def test_saved_and_reloaded_gives_the_same_ids(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    reloaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "The overhanging banana, astride a catbox?"
    assert reloaded(text, padding="max_length").input_ids == tokenizer(text, padding="max_length").input_ids
    assert reloaded.model_max_length == 24


def test_a_word_clip_would_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'t-shirt' cannot be one token"):
        build_tokenizer(["t-shirt"], max_length=24)
