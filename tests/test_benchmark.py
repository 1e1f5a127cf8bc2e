"""The benchmark files, their grids, and the rule that holds triplets out."""

from __future__ import annotations

from pathlib import Path

import pytest

from relinv.benchmark import Split, load_benchmark
from relinv.errors import UserError

FILES = ["data/benchmark/miniature.yaml", "data/benchmark/reversion.yaml"]
HEAD = "name: x\nheld_out: null\nvalidation: {fraction: 0.25, seed: 1}\n"
NAMES = ["painted_on", "carved_by", "shake_hands", "hug", "back2back", "inside", "on", "hanging_from", "wrapped_in",
         "ride_on"]  # fmt: skip
WORDS = ["painted on", "carved by", "shaking hands with", "hugging", "back to back with", "inside", "on",
         "hanging from", "wrapped in", "riding on"]  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_benchmark_has_a_thousand_scenarios_in_ten_relations(file: str) -> None:
    benchmark = load_benchmark(file)
    assert list(benchmark.relations) == NAMES
    assert [relation.words for relation in benchmark.relations.values()] == WORDS
    symmetric = [relation.name for relation in benchmark.relations.values() if not relation.asymmetric]
    assert symmetric == ["shake_hands", "hug", "back2back"]
    scenarios = [scenario for name in NAMES for scenario in benchmark.scenarios(name)]
    assert len({(scenario.relation, scenario.head, scenario.tail) for scenario in scenarios}) == 1000


def test_grid_runs_row_by_row() -> None:
    scenarios = load_benchmark(FILES[0]).scenarios("inside")
    assert [scenario.index for scenario in scenarios] == list(range(100))
    assert [(s.head, s.tail) for s in scenarios[:2]] == [("man", "box"), ("man", "basket")]
    assert (scenarios[10].head, scenarios[10].tail) == ("child", "box")


def test_the_miniature_holds_out_about_a_fifth_of_each_relation() -> None:
    benchmark = load_benchmark(FILES[0])
    counts = [sum(scenario.held_out is True for scenario in benchmark.scenarios(name)) for name in NAMES]
    assert all(10 <= count <= 30 for count in counts)
    assert 170 <= sum(counts) <= 230


def test_the_published_benchmark_does_not_know_what_was_held_out() -> None:
    benchmark = load_benchmark(FILES[1])
    assert {scenario.held_out for scenario in benchmark.scenarios("on")} == {None}
    assert not benchmark.is_held_out("cat", "on", "dog")


def test_held_out_rule_is_the_same_everywhere_and_blind_to_order() -> None:
    def rule(head: str, tail: str, fraction: float = 0.2, seed: int = 0) -> bool:
        return Split(fraction=fraction, seed=seed).holds(head, "hug", tail)

    names = [f"entity{number}" for number in range(60)]
    chosen = {(head, tail) for head in names for tail in names if rule(head, tail)}
    assert 0.17 < len(chosen) / 3600 < 0.23
    assert chosen == {(tail, head) for head, tail in chosen}
    assert not any(rule(head, "cat", fraction=0.0) for head in names)
    assert all(rule(head, "cat", fraction=1.0) for head in names)
    assert chosen != {(head, tail) for head in names for tail in names if rule(head, tail, seed=1)}
    held_out = [s.tail for s in load_benchmark(FILES[0]).scenarios("inside") if s.head == "cat" and s.held_out]
    assert held_out == ["basket", "cup", "barrel", "drum"]
    validation = [s.tail for s in load_benchmark(FILES[0]).scenarios("inside") if s.head == "cat" and s.validation]
    assert validation == ["box", "bowl"]


@pytest.mark.parametrize("file", FILES)
def test_validation_and_test_scenarios_part_each_grid_and_keep_their_numbers(file: str) -> None:
    benchmark = load_benchmark(file)
    chosen = 0
    for relation in benchmark.relations:
        grid, validation, test = (benchmark.scenarios(relation, pairs) for pairs in ("all", "validation", "test"))
        assert sorted(validation + test, key=lambda scenario: scenario.index) == grid
        assert 10 <= len(validation) <= 40
        chosen += len(validation)
    assert 200 <= chosen <= 300


KISSING = "words: kissing\nasymmetric: false\nheads: [cat]\ntails: [dog, cup]\n"


def own_relation(folder: Path, text: str = KISSING) -> Path:
    """Return a folder of exemplars with a relation.yaml."""
    folder.mkdir()
    (folder / "relation.yaml").write_text(text)
    return folder


def test_a_relation_of_ones_own_joins_the_benchmark_and_nobody_knows_what_the_base_has_seen(tmp_path: Path) -> None:
    folder = own_relation(tmp_path / "kissing")
    plain, joined = load_benchmark(FILES[0]), load_benchmark(FILES[0], folder, tmp_path / "nowhere")
    cells = [(s.head, s.tail, s.held_out) for s in joined.scenarios("kissing")]
    assert cells == [("cat", "dog", None), ("cat", "cup", None)]
    assert list(joined.relations) == [*NAMES, "kissing"]
    assert [joined.scenarios(name) for name in NAMES] == [plain.scenarios(name) for name in NAMES]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("inside", KISSING, "stands both in .*remove it"),
        (
            "kissing",
            KISSING.replace("asymmetric: false\n", ""),
            r"'asymmetric' is missing from .*relation\.yaml",
        ),
        ("kissing", "words: [\n", r"relation\.yaml"),
        ("kissing", "", r"'words' is missing from .*relation\.yaml"),
        ("kissing", KISSING.replace("words: kissing", "words: ''"), r"'words' is '' in .*relation\.yaml"),
        ("kissing", KISSING.replace("words: kissing", "words: '  '"), r"'words' is '  ' in .*relation\.yaml"),
        (
            "kissing",
            KISSING.replace("[cat]", "[cat, cat]"),
            r"'heads' is .*relation\.yaml: .*each item may appear only once",
        ),
        (
            "kissing",
            KISSING.replace("[cat]", "[cat, Cat]"),
            r"'heads' is .*relation\.yaml: .*each item may appear only once",
        ),
        (
            "kissing",
            KISSING.replace("[dog, cup]", "[cup, ' cup']"),
            r"'tails' is .*relation\.yaml: .*each item may appear only once",
        ),
    ],
)
def test_a_wrong_entry_of_ones_own_is_told_with_its_file(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_benchmark(FILES[0], own_relation(tmp_path / name, text))


def test_spaces_that_no_tokenizer_reads_are_dropped(tmp_path: Path) -> None:
    text = KISSING.replace("words: kissing", "words: ' on  top of'").replace("[cat]", "['cat ']")
    kissing = load_benchmark(FILES[0], own_relation(tmp_path / "kissing", text)).relation("kissing")
    assert (kissing.words, kissing.heads) == ("on top of", ("cat",))


def test_unknown_relation_is_answered_with_the_closest() -> None:
    with pytest.raises(
        UserError, match=r"Unknown relation 'insde'. Did you mean 'inside'\?.*`relinv new insde PICTURES`"
    ):
        load_benchmark(FILES[0]).scenarios("insde")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "relations: {hug: {words: hugging}}\n", r"'relations\.hug\.asymmetric' is missing"),
        (HEAD.replace("null", "{fraction: 2, seed: 0}") + "relations: {}\n", r"'held_out\.fraction' is 2"),
        (
            HEAD + "relations: {hug: {words: hugging, asymmetric: false, heads: [cat], tails: [dog, dog]}}\n",
            r"'relations\.hug\.tails' is \['dog', 'dog'\] in .*each item may appear only once",
        ),
    ],
)
def test_bad_benchmark_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "benchmark.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_benchmark(tmp_path / "benchmark.yaml")
