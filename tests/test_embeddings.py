"""Learned tokens in use: their rows reach the encoder, and the base comes back as it was."""

from __future__ import annotations

import pytest
import torch

from relinv.diffusion.bases import Base
from relinv.diffusion.embeddings import PlaceholderTokens
from relinv.errors import UserError
from tests.tiny import weights


def word_row(base: Base, word: str) -> torch.Tensor:
    return base.table[base.tokenizer(word, add_special_tokens=False).input_ids[0]]


def test_a_token_with_a_words_row_encodes_as_that_word(base: Base) -> None:
    with PlaceholderTokens(base, {"<r>": word_row(base, "inside")}).applied():
        learned = base.encode(base.tokenize(["a cat <r> box"]))
    assert torch.equal(learned, base.encode(base.tokenize(["a cat inside box"])))


def test_upper_case_is_read_as_lower_case(base: Base) -> None:
    with PlaceholderTokens(base, {"<r>": word_row(base, "inside")}).applied():
        assert torch.equal(base.tokenize(["cat <R> box"]), base.tokenize(["cat <r> box"]))


def test_several_tokens_and_nested_blocks(base: Base) -> None:
    rows = {"<a>": word_row(base, "cat"), "<b>": word_row(base, "box")}
    with PlaceholderTokens(base, rows).applied(), PlaceholderTokens(base, {"<r>": word_row(base, "in")}).applied():
        learned = base.encode(base.tokenize(["<a> <r> <b>", "<b> <r> <r>"]))
    assert torch.equal(learned, base.encode(base.tokenize(["cat in box", "box in in"])))


def test_a_block_is_entered_again_alone_and_inside_another(base: Base) -> None:
    tokens, other = (PlaceholderTokens(base, {name: word_row(base, "in")}) for name in ("<r>", "<s>"))
    plain = base.encode(base.tokenize(["cat in box"]))
    for _ in range(2):
        with tokens.applied():
            assert torch.equal(base.encode(base.tokenize(["cat <r> box"])), plain)
        with other.applied(), tokens.applied():  # where <r> has another id
            for prompt in ("cat <r> box", "cat <s> box"):
                assert torch.equal(base.encode(base.tokenize([prompt])), plain)


def test_gradients_reach_the_rows_alone(base: Base) -> None:
    tokens = PlaceholderTokens(base, {"<r>": word_row(base, "inside")})
    with tokens.applied():
        base.encode(base.tokenize(["cat <r> box"])).square().sum().backward()
    assert tokens.rows.grad is not None and tokens.rows.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in base.text_encoder.parameters())


def test_the_base_is_left_bit_identical(base: Base) -> None:
    before, vocabulary = weights(base), base.tokenizer.get_vocab()
    with PlaceholderTokens(base, {"<r>": torch.randn(base.dim)}).applied():
        base.encode(base.tokenize(["cat <r> box"]))
    assert weights(base) == before
    assert base.tokenizer.get_vocab() == vocabulary
    with pytest.raises(UserError, match="names <r>, which no concept in use has learned"):
        base.tokenize(["cat <r> box"])


def test_no_token_changes_nothing(base: Base) -> None:
    plain = base.encode(base.tokenize(["cat in box"]))
    with PlaceholderTokens(base, {}).applied():
        assert torch.equal(base.encode(base.tokenize(["cat in box"])), plain)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("<R>", 32, "must be lower case"), ("<r>", 31, r"has shape \(31,\)"), ("cat</w>", 32, "knows the token")],
)
def test_what_cannot_be_a_token_is_refused(base: Base, name: str, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message), PlaceholderTokens(base, {name: torch.zeros(size)}).applied():
        pass


def test_a_prompt_that_is_too_long_is_refused(base: Base) -> None:
    with pytest.raises(UserError, match="32 tokens and the limit is 24"):
        base.tokenize(["cat " * 30])
