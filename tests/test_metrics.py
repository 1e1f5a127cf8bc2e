"""The contract every metric file keeps, and each metric's value on embeddings made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from relinv.benchmark import Relation
from relinv.errors import UserError
from relinv.params import load_params
from relinv.plugins import plugin_names
from relinv.preflight import check_params
from relinv.scoring import METRICS, Context, load_metric, ranked_first

INSIDE = Relation("inside", "inside", True, ("cat", "dog", "box"), ("box", "cup"))
HUG = Relation("hug", "hugging", False, ("cat", "dog"), ("cat", "dog"))
ON = Relation("on", "on", True, ("cat",), ("box", "cat"))
ALONE = Relation("alone", "on", True, ("cat",), ("box",))
RELATIONS = (INSIDE, HUG, ON)
MAY_BE_UNDEFINED = {"direction", "same_grid_accuracy", "vqa_score"}  # in a benchmark of several relations and entities
NAMES = plugin_names(METRICS)


def text_dimension(texts: Sequence[str], known: list[str]) -> np.ndarray:
    """Return a one-hot vector per text, in 1,000 dimensions: its place in the growing list `known`."""
    known.extend(text for text in dict.fromkeys(texts) if text not in known)
    vectors = np.zeros((len(texts), 1000))
    vectors[np.arange(len(texts)), [known.index(text) for text in texts]] = 1
    return vectors


def hand_made(relation: Relation, pairs: Sequence[tuple[str, str]], cosines: Sequence[Mapping[str, float]]) -> Context:
    """Return a context whose image i has the cosines given to texts, and 0 to any other text."""
    known: list[str] = []
    images = np.zeros((len(pairs), 1000))
    for image, wanted in zip(images, cosines, strict=True):
        for text, cosine in wanted.items():
            image += cosine * text_dimension([text], known)[0]
        image[-1] = np.sqrt(1 - image @ image)
    exemplars = np.zeros((2, 1000))
    exemplars[[0, 1], [-1, -2]] = 1
    return Context(relation, RELATIONS, tuple(pairs), images, exemplars, lambda texts: text_dimension(texts, known))


def random_context(relation: Relation, pairs: Sequence[tuple[str, str]], seed: int = 0) -> Context:
    """Return a context with random pictures, and random unit vectors for images and texts."""
    generator = np.random.default_rng(seed)
    levels = generator.integers(0, 256, (len(pairs), 8, 8, 3), dtype=np.uint8)
    table: dict[str, np.ndarray] = {}

    def unit(count: int) -> np.ndarray:
        vectors = generator.normal(size=(count, 16))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode(texts: Sequence[str]) -> np.ndarray:
        for text in texts:
            table.setdefault(text, unit(1)[0])
        return np.stack([table[text] for text in texts])

    pictures = list(map(Image.fromarray, levels))
    exemplars = [Image.new("RGB", (8, 8), colour) for colour in ("red", "navy", "ivory", "black")]
    return Context(relation, RELATIONS, tuple(pairs), unit(len(pairs)), unit(4), encode, pictures, exemplars)


def grid(relation: Relation) -> list[tuple[str, str]]:
    return [(head, tail) for head in relation.heads for tail in relation.tails]


def value(name: str, context: Context) -> list[float]:
    return load_metric(name).score(context).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_says_what_it_is(name: str) -> None:
    metric = load_metric(name)
    for field in (metric.TITLE, metric.DESCRIPTION, metric.SOURCE, metric.__doc__, metric.score.__doc__):
        assert isinstance(field, str) and field
    assert "It sees" in metric.DESCRIPTION and "cannot" in metric.DESCRIPTION  # its blind spot is told
    assert metric.HIGHER_IS_BETTER in (True, False, None)
    assert metric.BOUNDS[0] < metric.BOUNDS[1]


def test_more_is_better_of_all_that_an_image_is_scored_by_but_likeness_to_one_exemplar() -> None:
    assert [name for name in NAMES if not load_metric(name).HIGHER_IS_BETTER] == ["exemplar_similarity"]


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
@pytest.mark.parametrize("name", NAMES)
def test_a_metric_gives_one_number_in_range_for_each_image(name: str, relation: Relation) -> None:
    metric = load_metric(name)
    scores = metric.score(random_context(relation, grid(relation)))
    assert scores.shape == (len(grid(relation)),)
    assert np.issubdtype(scores.dtype, np.floating)
    defined = scores[~np.isnan(scores)]
    assert len(defined) == len(scores) or name in MAY_BE_UNDEFINED
    assert ((metric.BOUNDS[0] <= defined) & (defined <= metric.BOUNDS[1])).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_does_not_depend_on_the_order_of_images(name: str) -> None:
    context = random_context(INSIDE, grid(INSIDE))
    scores = load_metric(name).score(context)
    order = np.random.default_rng(1).permutation(len(context.pairs))
    moved = {name: [getattr(context, name)[place] for place in order] for name in ("pairs", "pictures")}
    shuffled = replace(context, images=context.images[order], **moved)
    np.testing.assert_allclose(load_metric(name).score(shuffled), scores[order], atol=1e-12)


def test_an_unknown_metric_is_answered_with_the_closest() -> None:
    with pytest.raises(UserError, match=r"Unknown metric 'relation_acuracy'. Did you mean 'relation_accuracy'"):
        load_metric("relation_acuracy")


@pytest.mark.parametrize("name", ["relation", "seed", "leakage", "judge"])
def test_a_metric_cannot_take_another_columns_name(name: str) -> None:
    with pytest.raises(UserError, match=f"cannot be called '{name}', as another column"):
        load_metric(name)


def test_a_metric_without_one_of_its_parts_is_told_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = load_metric("entity")
    monkeypatch.delattr(metric, "TITLE")
    monkeypatch.delattr(metric, "BOUNDS")
    with pytest.raises(UserError, match=r"The metric 'entity' lacks TITLE, BOUNDS: relinv/metrics/__init__\.py tells"):
        load_metric("entity")
    with pytest.raises(UserError, match="The metric 'entity' lacks TITLE, BOUNDS"):
        check_params(load_params())  # before anything is learned


def test_entity_is_the_cosine_to_both_names() -> None:
    assert value("entity", hand_made(INSIDE, [("cat", "box")], [{"cat and box": 0.3}])) == [0.3]


def test_entities_of_a_scenario_without_a_head_are_no_pair() -> None:
    context = hand_made(INSIDE, [("", "inside box"), ("cat", "box")], [{}, {"cat and box": 0.3}])
    assert value("entity", context) == pytest.approx([np.nan, 0.3], nan_ok=True)


def test_image_similarity_is_the_mean_over_the_exemplars() -> None:
    context = hand_made(INSIDE, [("cat", "box"), ("dog", "box")], [{}, {"dog inside box": 0.6}])
    assert value("image_similarity", context) == pytest.approx([0.5, 0.4])  # cosines 1 and 0, 0.8 and 0


def test_vqa_score_is_of_each_image_with_its_own_words() -> None:
    context = hand_made(INSIDE, [("cat", "box"), ("dog", "cup")], [{}, {}])
    assert np.isnan(value("vqa_score", context)).all()
    answers = {"cat inside box": 0.75, "dog inside cup": 0.125}
    answering = replace(context, vqa=lambda texts: np.array([answers[text] for text in texts], dtype=np.float32))
    assert value("vqa_score", answering) == [0.75, 0.125]


def test_relation_score_and_margin() -> None:
    cosines = {"cat inside box": 0.5, "cat hugging box": 0.1, "cat on box": 0.2}
    context = hand_made(INSIDE, [("cat", "box")], [cosines])
    assert value("relation_score", context) == pytest.approx([0.5])
    assert value("relation_margin", context) == pytest.approx([0.5 - 0.15])


def test_relation_accuracy_asks_for_the_best_of_all_relations() -> None:
    right = {"cat inside box": 0.5, "cat on box": 0.4, "dog inside box": 0.6}  # entities do not matter here
    wrong = {"cat inside box": 0.3, "cat on box": 0.4}
    tie = {"cat inside box": 0.3, "cat on box": 0.3}
    assert value("relation_accuracy", hand_made(INSIDE, [("cat", "box")] * 3, [right, wrong, tie])) == [
        1,
        0,
        0,
    ]


def test_a_relation_of_the_same_words_does_not_compete() -> None:
    mine = replace(INSIDE, name="mine", own=True)
    cosines = {"cat inside box": 0.5, "cat hugging box": 0.1, "cat on box": 0.2}
    found = hand_made(mine, [("cat", "box")], [cosines])
    context = replace(found, relations=(*found.relations, mine))
    assert value("relation_accuracy", context) == value("scene_accuracy", context) == [1]
    assert value("relation_margin", context) == pytest.approx([0.5 - 0.15])


def test_same_grid_accuracy_asks_for_the_best_of_the_relations_between_the_same_entities() -> None:
    shake = replace(HUG, name="shake", words="shaking hands with", heads=HUG.heads[::-1])
    beside = replace(HUG, name="beside", words="beside", tails=("cat", "box"))  # shares its heads alone
    above = replace(HUG, name="above", words="above", heads=("cat", "box"))  # shares its tails alone
    right = {
        "cat hugging dog": 0.4,
        "cat shaking hands with dog": 0.3,
        "cat inside dog": 0.5,
        "cat beside dog": 0.5,
        "cat above dog": 0.5,
    }  # the last three, of other grids, are not asked
    wrong = {"cat hugging dog": 0.4, "cat shaking hands with dog": 0.5}
    found, others = hand_made(HUG, [("cat", "dog")] * 2, [right, wrong]), (*RELATIONS, beside, above)
    assert value("same_grid_accuracy", replace(found, relations=(*others, shake))) == [1, 0]
    assert np.isnan(value("same_grid_accuracy", replace(found, relations=others))).all()


def test_entity_accuracy_replaces_head_or_tail_within_the_grid() -> None:
    right = {
        "cat inside box": 0.5,
        "cat on box": 0.6,
        "dog inside cup": 0.6,
    }  # other relation, both replaced: not asked
    other_head = {"cat inside box": 0.5, "dog inside box": 0.6}
    other_tail = {"cat inside box": 0.5, "cat inside cup": 0.6}
    context = hand_made(INSIDE, [("cat", "box")] * 3, [right, other_head, other_tail])
    assert value("entity_accuracy", context) == [1, 0, 0]
    assert context.other_entities().shape == (3, 2 + 1)


def test_scene_accuracy_is_both_at_once() -> None:
    context = random_context(INSIDE, grid(INSIDE) * 50)
    relation, entity, scene = (np.array(value(f"{name}_accuracy", context)) for name in ("relation", "entity", "scene"))
    np.testing.assert_array_equal(scene, relation * entity)
    assert 0 < scene.sum() < entity.sum()


def test_direction_swaps_head_and_tail() -> None:
    right, wrong = (
        {"cat inside box": 0.5, "box inside cat": 0.4},
        {"cat inside box": 0.4, "box inside cat": 0.5},
    )
    scores = value("direction", hand_made(INSIDE, [("cat", "box"), ("cat", "box"), ("box", "box")], [right, wrong, {}]))
    assert scores[:2] == [1, 0]
    assert np.isnan(scores[2])


def test_direction_is_undefined_for_symmetric_relations() -> None:
    assert np.isnan(value("direction", random_context(HUG, grid(HUG)))).all()


def test_exemplar_similarity_is_the_largest() -> None:
    context = hand_made(INSIDE, [("cat", "box"), ("dog", "box")], [{}, {"dog inside box": 1.0}])
    assert value("exemplar_similarity", context) == [1, 0]


@pytest.mark.parametrize("name", ["relation_margin", "relation_accuracy", "scene_accuracy"])
def test_without_alternatives_a_reading_is_undefined(name: str) -> None:
    alone = replace(random_context(ALONE, grid(ALONE)), relations=(ALONE,))
    assert np.isnan(value(name, alone)).all()
    assert np.isnan(value("entity_accuracy", alone)).all()
    assert np.isnan(value("scene_accuracy", replace(random_context(INSIDE, grid(INSIDE)), relations=(INSIDE,)))).all()


def test_phrases_and_ties() -> None:
    assert HUG.phrase("cat", "dog") == "cat hugging dog"
    assert ranked_first(np.array([1.0, 1.0]), np.array([[0.9], [1.0]])).tolist() == [1, 0]
