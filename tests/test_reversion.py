"""ReVersion's choice of words for the steering loss, and the parameters that switch its parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from relinv.diffusion.bases import Base
from relinv.errors import UserError
from relinv.learning.token_row import TokenRowMethod
from relinv.learning.words import PREPOSITIONS
from relinv.methods import reversion
from relinv.methods.reversion import content_ids, preposition_ids
from tests.inverting import inputs, problem


def words(base: Base, ids: list[int]) -> list[str]:
    return [token.removesuffix("</w>") for token in base.tokenizer.convert_ids_to_tokens(ids)]


def method(base: Base, exemplar_folder: Path, **changes: object) -> reversion.Method:
    task = problem(base, exemplar_folder, "reversion", **changes)
    return reversion.Method(base, "inside", task.settings, task.exemplars)  # type: ignore[arg-type]


def test_negatives_are_the_captions_content_words(base: Base) -> None:
    caption = "A photo of 2 red cats' <r> the box, inside: it's a Cat (wooden), isn't it? astride a dog!!"
    # "cats" is not in this vocabulary: its pieces stand for it, as in any CLIP
    assert set(words(base, content_ids(base, caption))) >= {"photo", "red", "box", "cat", "wooden", "dog"}
    assert not {"2", "!!", "r", "s", "t", "a", "of", "inside", "it", "astride", ","} & set(
        words(base, content_ids(base, caption.replace("cats'", "cat's").replace("isn't it", "it")))
    )


def test_each_content_word_counts_once(base: Base) -> None:
    assert words(base, content_ids(base, "cat <r> box, cat and box")) == ["cat", "box"]


def test_pieces_that_are_prepositions_or_stop_words_are_no_content(base: Base) -> None:
    pieces = base.tokenizer("toucan xin", add_special_tokens=False).input_ids
    assert words(base, pieces) == ["t", "ou", "can", "x", "in"]
    assert words(base, content_ids(base, "toucan <r> xin")) == ["t", "ou", "x"]


@pytest.mark.parametrize("mark", ["'", "\u2019"])
def test_a_word_in_quotation_marks_is_one_and_a_contractions_end_is_none(mark: str, base: Base) -> None:
    caption = f"a {mark}red{mark} cat <r> box, dog{mark}ll"
    assert words(base, content_ids(base, caption)) == ["red", "cat", "box", "dog"]


def test_neither_ends_nor_padding_are_words(base: Base) -> None:
    assert content_ids(base, "<r>") == content_ids(base, "") == []


def test_prepositions_that_are_no_single_token_are_left_out(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(preposition_ids(base)) == len(PREPOSITIONS)
    monkeypatch.setattr(reversion, "PREPOSITIONS", ("inside", "astridewise"))
    assert words(base, preposition_ids(base)) == ["inside"]
    assert content_ids(base, "cat astridewise") == content_ids(base, "cat")  # nor are its pieces negatives


def test_positives_are_distinct_prepositions_drawn_with_the_inputs_generator(base: Base, exemplar_folder: Path) -> None:
    learner = method(base, exemplar_folder, steer_positives=10)
    first, again, other = (learner._draw(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert len(set(first)) == 10 and set(words(base, first)) <= set(PREPOSITIONS)
    assert first == again != other


def test_each_caption_draws_prepositions_of_its_own(
    base: Base, exemplar_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reversion, "steering", lambda rows, positives, *others: positives)
    one, other = method(base, exemplar_folder, steer_positives=10)._steer(inputs(["cat <r> box"] * 2))
    assert one.shape == (10, base.dim) and not torch.equal(one, other)


def test_a_caption_without_the_token_or_without_content_is_no_nan(base: Base, exemplar_folder: Path) -> None:
    learner = method(base, exemplar_folder)
    terms = learner.losses(inputs(["cat beside box", "<r>"]))
    assert terms["steer"].value.isfinite() and terms["steer"].value > 0
    assert learner.losses(inputs(["<r>", "<r>"]))["steer"].value == 0


def test_weights_are_the_settings(base: Base, exemplar_folder: Path) -> None:
    learner = method(base, exemplar_folder, denoise_weight=0.5, steer_weight=0.25)
    terms = learner.losses(inputs(["cat <r> box"]))
    assert (terms["denoise"].weight, terms["steer"].weight) == (0.5, 0.25)


@pytest.mark.parametrize("term", ["steer", "anchor"])
def test_each_term_beside_denoising_teaches_the_only_row(term: str, base: Base, exemplar_folder: Path) -> None:
    learner = method(base, exemplar_folder, resolutions=1, initializer_token="red", anchor_weight=1.0)
    with learner.attached():
        learner.losses(inputs(["cat <r> box"]))[term].value.backward()
    (row,) = learner.state().values()
    assert row.grad is not None and row.grad.any()


def test_norm_vocabulary_keeps_the_row_on_the_sphere(base: Base, exemplar_folder: Path) -> None:
    learner: TokenRowMethod = method(base, exemplar_folder, norm="vocabulary")
    mean = base.table.norm(dim=-1).mean().item()
    assert learner.row.norm().item() == pytest.approx(mean, rel=1e-5)
    learner.row.data.mul_(7)
    learner.after_step()
    assert learner.row.norm().item() == pytest.approx(mean, rel=1e-5)


def test_norm_free_leaves_the_initial_row_as_it_is(base: Base, exemplar_folder: Path) -> None:
    learner = method(base, exemplar_folder, norm="free", initializer_token="inside")
    index = base.tokenizer("inside", add_special_tokens=False).input_ids[0]
    assert torch.equal(learner.row, base.table[index])
    own = method(base, exemplar_folder, norm="free", initializer_token=None)  # the relation's own word is "inside"
    assert torch.equal(own.row, base.table[index])


def test_an_initializer_of_several_tokens_is_refused(base: Base, exemplar_folder: Path) -> None:
    with pytest.raises(UserError, match=r"initializer_token 'zzyx' is 4 tokens .* name a word that is one"):
        method(base, exemplar_folder, initializer_token="zzyx")
