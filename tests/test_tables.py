"""Tables of means, intervals and differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from relinv.benchmark import Split, load_benchmark
from relinv.report.rows import READINGS, Reading
from relinv.report.tables import (
    Line,
    Table,
    as_text,
    by_method,
    difference,
    figure,
    groups,
    interval,
    leads,
    percent,
    relation_table,
    verdict,
)
from relinv.statistics import Interval, mean_interval
from tests.reporting import FEW, METHODS, RELATIONS


def test_tables_mark_the_best_and_leave_out_the_undefined(rows: pd.DataFrame) -> None:
    table = by_method(rows, METHODS, ["scene_accuracy", "leakage"], FEW, "all")
    expected = [rows.loc[rows["method"] == method, "scene_accuracy"].mean() for method in METHODS]
    assert [line.cells[0].mean for line in table.lines] == pytest.approx(expected)
    assert [line.bold[0] for line in table.lines] == [value == max(expected) for value in expected]
    assert table.headings == ["scene accuracy\N{NO-BREAK SPACE}↑", "leakage"]
    (only,) = by_method(rows, ["reversion"], ["scene_accuracy"], FEW, "all").lines
    assert only.bold == [False]  # there is nothing it is better than
    alone = by_method(rows[rows["relation"] == "hug"], METHODS, ["direction"], FEW, "hug")
    assert [line.cells for line in alone.lines] == [[None]] * 3
    assert "–" in as_text([alone])


def test_a_terminal_shows_means_and_differences_beside_each_other() -> None:
    means = Table(
        "Means",
        ["scenes ↑", "direction ↑"],
        [
            Line("main", [Interval(0.5, 0.4, 0.6), None], [False, False]),
            Line("new", [Interval(1, 1, 1), None], [True, False]),
        ],
    )
    differences = Table(
        "More", means.headings, [Line("new − main", [Interval(0.5, 0.4, 0.6), None], [True, False])], True
    )
    assert as_text([means, differences]).splitlines() == [
        "             main                  new                   new − main",
        "scenes ↑     0.500  (0.400…0.600)  1.000* (1.000…1.000)  +0.500* (+0.400…+0.600)",
        "direction ↑  –                     –                     –",
    ]


def test_a_mean_that_rounds_to_zero_has_no_minus_and_a_difference_shows_its_sign() -> None:
    assert [figure(value) for value in (-0.0004, -0.0006, 0.5)] == ["0.000", "−0.001", "0.500"]
    assert [figure(value, signed=True) for value in (-0.0004, 0.0, 0.5)] == ["−0.000", "+0.000", "+0.500"]


def test_no_leakage_is_the_best(rows: pd.DataFrame) -> None:
    """Below zero, pictures are less like the exemplars than plain words' are: drawn worse, as likely as not."""
    table = by_method(rows, METHODS, ["leakage"], FEW, "all")
    assert table.lines[0].cells == [None] and [line.bold for line in table.lines] == [[False]] * 3


def test_the_lowest_is_the_best_of_a_metric_that_says_so(rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READINGS, "leakage", Reading("leakage", higher_is_better=False))
    plain, *learned = by_method(rows, METHODS, ["leakage"], FEW, "all").lines
    lowest, other = sorted(learned, key=lambda line: line.cells[0].mean)
    assert lowest.bold == [True] and other.bold == plain.bold == [False]


@pytest.mark.parametrize("metric", ["scene_accuracy", "leakage"])
def test_all_that_tie_for_the_best_are_marked(rows: pd.DataFrame, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READINGS, "leakage", Reading("leakage", higher_is_better=False))
    best = rows[rows["method"] == "reversion"]
    worse = best.assign(scene_accuracy=best["scene_accuracy"] - 0.1, leakage=best["leakage"] + 0.1)
    tied = pd.concat(arm.assign(method=name) for arm, name in zip((worse, best, best), METHODS, strict=True))
    table = by_method(tied, METHODS, [metric], FEW, "all")
    assert [line.bold for line in table.lines] == [[False], [True], [True]]
    each = relation_table(tied, RELATIONS, METHODS, metric, FEW)
    assert [line.bold for line in each.lines] == [[False, True, True]] * len(RELATIONS)


def test_means_that_differ_by_rounding_tie_for_the_best(rows: pd.DataFrame) -> None:
    arms = [rows[(rows["relation"] == "hug") & (rows["method"] == name)].head(3) for name in METHODS[:2]]
    right = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])  # a third each, as 1 − 2/3 and as 0 + 1/3
    equal = pd.concat(arm.assign(scene_accuracy=values) for arm, values in zip(arms, right, strict=True))
    table = by_method(equal, METHODS[:2], ["scene_accuracy"], FEW, "all")
    assert [line.bold for line in table.lines] == [[True], [True]]


def test_the_best_is_alone_however_little_it_is_ahead(rows: pd.DataFrame) -> None:
    alike = rows[rows["method"].isin(METHODS[:2])].assign(relation_score=0.5)
    ahead = alike.assign(relation_score=alike["relation_score"].mask(alike["method"] == METHODS[1], 0.5001))
    table = by_method(ahead, METHODS[:2], ["relation_score"], FEW, "all")
    assert [line.bold for line in table.lines] == [[False], [True]]


@pytest.mark.parametrize(("share", "words"), [(0.95, "95\N{NO-BREAK SPACE}%"), (0.999, "99.9\N{NO-BREAK SPACE}%")])
def test_a_share_is_told_in_percent_as_it_is(share: float, words: str) -> None:
    assert percent(share) == words


def test_each_line_of_the_relations_is_of_that_relation_alone(rows: pd.DataFrame) -> None:
    table = relation_table(rows, RELATIONS, METHODS, "scene_accuracy", FEW)
    assert table.headings == ["relation words", "textual inversion", "reversion"]
    means = rows.groupby(["relation", "method"])["scene_accuracy"].mean()
    for line, relation in zip(table.lines, RELATIONS, strict=True):
        assert line.name == relation
        assert [cell.mean for cell in line.cells] == pytest.approx([means[relation, method] for method in METHODS])


def test_groups_split_held_out_from_seen_and_vanish_where_unknown(rows: pd.DataFrame) -> None:
    benchmark = load_benchmark("data/benchmark/miniature.yaml")
    rows = rows.assign(exemplar_pair=rows["index"] < 3)
    held_out, seen, unshown, tests = groups(rows, benchmark, METHODS, FEW)
    assert "held out" in held_out.caption and "8 scenarios" in held_out.caption
    assert "seen" in seen.caption and "16 scenarios" in seen.caption
    assert unshown.caption == "Pairs that no exemplar shows: 18 scenarios"
    count = sum(s.index < 12 for relation in RELATIONS for s in benchmark.scenarios(relation, "test"))
    assert tests.caption == f"Scenarios by which no setting was chosen: {count} scenarios"
    assert [line.cells[0].mean for line in held_out.lines] == pytest.approx(
        [rows.loc[rows["held_out"] & (rows["method"] == method), "scene_accuracy"].mean() for method in METHODS]
    )
    partly = rows.assign(held_out=rows["held_out"].astype(object).where(rows["relation"] == "inside"))
    assert [table.caption.rpartition(": ")[2] for table in groups(partly, benchmark, METHODS, FEW)[:2]] == [
        "4 scenarios",
        "8 scenarios",  # not those of which nothing is known
    ]
    nothing_known = dataclasses.replace(benchmark, validation=Split(fraction=0, seed=0))
    assert groups(rows.assign(held_out=np.nan, exemplar_pair=False), nothing_known, METHODS, FEW) == []


def test_no_interval_goes_beyond_what_can_be(rows: pd.DataFrame) -> None:
    few = rows[rows["index"] < 3].assign(scene_accuracy=lambda of: (of["relation"] == "hug").astype(float))
    few.loc[few["method"] == "reversion", "scene_accuracy"] = 1.0
    assert mean_interval(few[few["method"] == METHODS[0]], "scene_accuracy", FEW).high > 1
    assert interval(few, METHODS[0], "scene_accuracy", FEW) == (0.5, 0, 1)
    assert difference(few, "reversion", METHODS[0], "scene_accuracy", FEW) == (0.5, -1, 1)


def test_leads_are_the_subjects(rows: pd.DataFrame) -> None:
    table, alone = leads(rows, "reversion", METHODS, ["image_similarity"], FEW)
    assert (
        [line.name for line in table.lines]
        == [line.name for line in alone.lines]
        == [
            "reversion − relation words",
            "reversion − textual inversion",
        ]
    )
    assert table.lines[1].bold == [True]  # made up to differ by 0.1, five standard deviations
    assert table.lines[1].cells[0].mean == pytest.approx(-0.1, abs=0.03)  # reversion's is the lower
    mirrored = rows.assign(image_similarity=-rows["image_similarity"])
    turned, _ = leads(mirrored, "reversion", METHODS, ["image_similarity"], FEW)
    assert turned.lines[1].bold == [True] and turned.lines[1].cells[0].mean == -table.lines[1].cells[0].mean
    assert table.lines[0].bold == turned.lines[0].bold == [False]  # of one distribution
    (only,) = leads(rows[rows["relation"] == "hug"], "textual_inversion", METHODS[:2], ["image_similarity"], FEW)
    assert [line.name for line in only.lines] == ["textual inversion − relation words"]
    assert leads(rows, METHODS[0], METHODS[:1], ["image_similarity"], FEW) == []


def test_a_difference_is_told_honestly() -> None:
    unclear = verdict("a", "b", "scene accuracy", Interval(0.02, -0.01, 0.05), 0.95)
    assert "includes zero" in unclear and "cannot tell" in unclear and "95\N{NO-BREAK SPACE}%" in unclear
    assert "includes zero" in verdict("a", "b", "leakage", Interval(0.1, 0.0, 0.2), 0.95)
    clear = verdict("a", "b", "leakage", Interval(-0.2, -0.3, -0.1), 0.9)
    assert "0.300 higher" in verdict("a", "b", "leakage", Interval(0.3, 0.1, 0.5), 0.9)
    assert "0.200 lower" in clear and "90\N{NO-BREAK SPACE}% interval −0.300 to −0.100" in clear
    small = verdict("a", "b", "leakage", Interval(-0.0004, -0.0008, -0.0001), 0.95)
    assert "0.000400 lower" in small and "interval −0.000800 to −0.000100" in small
    assert "interval +0.000200 to +0.001000" in verdict("a", "b", "leakage", Interval(0.0006, 0.0002, 0.001), 0.95)
    assert "+0.000 to +0.001" in verdict("a", "b", "leakage", Interval(0.0006, 0.0, 0.001), 0.95)
