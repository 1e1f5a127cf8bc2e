"""The report: what it reads, what it computes, and the files it writes."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from dvc.utils.hydra import apply_overrides
from PIL import Image, ImageColor

from relinv.benchmark import Split, load_benchmark
from relinv.errors import UserError
from relinv.exemplars import Exemplar, ExemplarSet
from relinv.files import parse_yaml, read_yaml
from relinv.fingerprint import judge_fingerprint
from relinv.images import FORMS_FILE
from relinv.params import load_params
from relinv.report import charts
from relinv.report.build import write_report
from relinv.report.collect import collect, used_parameters
from relinv.report.pages import data_uri, html
from relinv.report.rows import FURTHER, READINGS, Reading, format_rows, means, parse_rows, shows, with_leakage
from relinv.report.sheets import CELL, GAP, LEAST, RIGHT, WRONG, Panel, Sheet, Shot, build, render, spread
from relinv.report.sheets import Line as SheetLine
from relinv.report.story import _mean, _smooth, tell
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
from relinv.statistics import Bootstrap, Interval, mean_interval
from tests.reporting import METHODS, RELATIONS, score_table, write_arm, write_run

FEW = Bootstrap(resamples=100)


def both(*tables: pd.DataFrame) -> pd.DataFrame:
    """Return score tables as one, with leakage."""
    return with_leakage(pd.concat(tables, ignore_index=True))


@pytest.fixture
def rows() -> pd.DataFrame:
    """Score rows of two relations by three methods."""
    return both(*(score_table(relation, method) for relation in RELATIONS for method in METHODS))


def test_leakage_is_the_similarity_beyond_plain_words_where_both_have_the_relation(rows: pd.DataFrame) -> None:
    """Where one of the two lacks it, similarity would say that the relation was learned, for exemplars show it."""
    similarity, right, leakage = (
        rows.pivot(index=["relation", "index"], columns="method", values=column)
        for column in ("exemplar_similarity", "relation_accuracy", "leakage")
    )
    both_right = (right["reversion"] == 1) & (right["relation_words"] == 1)
    expected = (similarity["reversion"] - similarity["relation_words"])[both_right]
    assert 0 < both_right.sum() < len(right)
    pd.testing.assert_series_equal(leakage["reversion"].dropna(), expected, check_names=False)
    assert leakage["relation_words"].isna().all()


def test_leakage_stays_with_its_row_whatever_the_rows_order(rows: pd.DataFrame) -> None:
    mixed = rows.drop(columns="leakage").sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(with_leakage(mixed).sort_index(), rows)


def test_leakage_is_defined_where_a_relation_stands_alone(rows: pd.DataFrame) -> None:
    alone = with_leakage(rows.assign(relation_accuracy=float("nan")))
    assert alone.loc[rows["method"] == "reversion", "leakage"].notna().all()


def test_leakage_is_beyond_plain_words_of_the_same_seed() -> None:
    methods = ("relation_words", "reversion")
    alone = [both(*(score_table("hug", method, seed) for method in methods)) for seed in (0, 1)]
    together = both(*(score_table("hug", method, seed) for seed in (0, 1) for method in methods))
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True))


def test_leakage_is_undefined_without_plain_words() -> None:
    rows = both(score_table("hug", "reversion"))
    assert rows["leakage"].isna().all()
    assert means(rows, ["reversion"])["reversion"]["leakage"] is None


def test_rows_survive_being_written_and_read(rows: pd.DataFrame) -> None:
    text = format_rows(rows)
    again = parse_rows(text.encode(), "scores.csv")
    assert format_rows(again) == text
    assert again["direction"].isna().sum() == (rows["relation"] == "hug").sum()


def test_leakage_may_be_as_large_as_two_cosines_differ(rows: pd.DataFrame) -> None:
    for leakage in (-2.0, 2.0):
        again = parse_rows(format_rows(rows.assign(leakage=leakage)).encode(), "scores.csv")
        assert set(again["leakage"]) == {leakage}


def test_an_entity_may_be_called_nan() -> None:
    table = score_table("hug", "reversion").assign(head="nan")
    assert set(parse_rows(table.to_csv(index=False).encode(), "x")["head"]) == {"nan"}


def test_names_of_digits_stay_as_they_are() -> None:
    table = score_table("hug", "reversion").assign(relation="2001", method="007", head="042", judge="0123456789012345")
    rows = parse_rows(table.to_csv(index=False).encode(), "x")
    assert set(rows["head"]) == {"042"} and set(rows["judge"]) == {"0123456789012345"}
    assert means(with_leakage(rows), ["007"])["007"]["scene_accuracy"] == pytest.approx(table["scene_accuracy"].mean())
    assert set(rows["relation"]) == {"2001"}


EMPTY = score_table("hug", "reversion").head(0).to_csv(index=False)


@pytest.mark.parametrize("text", ["", "relation,method\nhug,reversion\n", "a,b\n1,2,3\n4\n", EMPTY])
def test_damaged_rows_are_named(text: str) -> None:
    with pytest.raises(UserError, match=r"The scores 'hug\.csv' .*dvc repro"):
        parse_rows(text.encode(), "hug.csv")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda text: text.replace(",box,", ",caf\udce9,", 1), "are damaged .*utf-8"),
        (lambda text: text[:-9], "end within a row"),
        (lambda text: text + text.splitlines()[-1] + "\n", r"hold a row twice, that of 011\.png"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_damaged(
    damage: Callable[[str], str], fault: str, rows: pd.DataFrame
) -> None:
    text = format_rows(rows)
    content = damage(text).encode("utf-8", "surrogateescape")
    with pytest.raises(UserError, match=rf"^The scores 'scores\.csv' {fault}.*: delete them and run `dvc repro`\.$"):
        parse_rows(content, "scores.csv")


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("scene_accuracy", "much", "are damaged .*much"),
        ("index", 0.5, "are damaged"),
        ("seed", "", "are damaged"),
        ("scene_accuracy", -5, "hold a value of 'scene_accuracy' that is not between 0 and 1"),
        ("exemplar_similarity", np.inf, "hold a value of 'exemplar_similarity' that is not between -1 and 1"),
        (FURTHER[0], 7, f"hold a value of '{FURTHER[0]}' that is not between"),
    ],
)
def test_a_number_that_cannot_be_is_damage(column: str, value: object, fault: str, rows: pd.DataFrame) -> None:
    with pytest.raises(UserError, match=rf"^The scores 'scores\.csv' {fault}.*: delete them and run `dvc repro`\.$"):
        parse_rows(format_rows(rows.assign(**{column: value})).encode(), "scores.csv")


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


@pytest.mark.parametrize(
    ("head", "tail", "shown"),
    [
        ("cat", "box", True),
        ("box", "cat", True),
        ("Michael Jackson", "wall", True),
        ("dog", "lamp", True),  # in a further caption
        ("robot (toy)", "wall", True),
        ("cat", "wall", False),  # of two pictures
        ("cat", "cat", False),
        ("cat", "bo", False),
        ("cat", "ox", False),
        ("", "box", False),  # an object's scenario has no head
    ],
)
def test_exemplars_show_a_pair_on_the_two_sides_of_the_relation(head: str, tail: str, shown: bool) -> None:
    captions = (
        ("Cat {} box", "a photo of a dog {} lamp, on the beach"),
        ("michael jackson {} wall", "robot (toy) {} wall"),
    )
    exemplars = tuple(Exemplar(Path(f"{index}.png"), templates) for index, templates in enumerate(captions))
    assert shows(ExemplarSet("inside", exemplars, ""), head, tail) is shown


def test_a_metric_added_since_rows_were_written_is_undefined_for_them(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relinv.report.rows.FURTHER", ["no_such_metric"])
    assert parse_rows(format_rows(rows).encode(), "scores.csv")["no_such_metric"].isna().all()


def test_rows_older_than_the_column_of_the_judge_are_by_one_not_known(rows: pd.DataFrame) -> None:
    content = rows.drop(columns="judge").to_csv(index=False).encode()
    assert (parse_rows(content, "scores.csv")["judge"] == "").all()


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


def shapes(drawn: str, tag: str, kind: str = "") -> list[ElementTree.Element]:
    """Return a drawing's shapes of one tag, in order; if `kind` is given, those of this class alone."""
    found = ElementTree.fromstring(drawn).iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    return [shape for shape in found if not kind or shape.get("class") == kind]


def numbers(shape: ElementTree.Element, *names: str) -> list[float]:
    return [float(shape.attrib[name]) for name in names]


def test_bars_draw_lengths_to_scale() -> None:
    drawn = charts.bars("t", ["on"], {"a": [Interval(1.0, 1.0, 1.0)], "b": [Interval(0.5, 0.4, 0.6)], "c": [None]})
    full = charts.WIDTH - charts.RIGHT - charts.LABEL
    assert f'width="{full:.1f}"' in drawn and f'width="{full / 2:.1f}"' in drawn
    assert drawn.count("<rect") == 2


def test_a_long_name_beside_bars_is_broken_and_none_of_it_cut_off() -> None:
    found = {"a": [Interval(0.5, 0.4, 0.6)] * 2}
    drawn = charts.bars("t", ["leaning against the wall", "on"], found)
    texts = [shape for shape in shapes(drawn, "text") if shape.get("text-anchor") == "end"]
    assert [shape.text for shape in texts] == ["leaning", "against the", "wall", "on"]
    heights = [numbers(shape, "y")[0] for shape in texts]
    assert all(below - above >= charts.LINE for above, below in pairwise(heights))


def test_each_bar_has_its_own_place_colour_and_interval() -> None:
    found = {"a": [Interval(0.5, 0.4, 0.7), Interval(0.2, 0.1, 0.3)], "b": [Interval(0.8, 0.7, 0.9), None]}
    drawn = charts.bars("t", ["on <", "in"], found, chance=0.1)
    bars = shapes(drawn, "rect")
    assert [bar.get("class") for bar in bars] == ["s0", "s1", "s0"]
    tops, height = [numbers(bar, "y")[0] for bar in bars], numbers(bars[0], "height")[0]
    assert all(after - before > height for before, after in pairwise(tops))
    assert [title.text for title in shapes(drawn, "title")] == [
        "on <, a: 0.500 (0.400 to 0.700)",
        "on <, b: 0.800 (0.700 to 0.900)",
        "in, a: 0.200 (0.100 to 0.300)",
    ]
    full = charts.WIDTH - charts.RIGHT - charts.LABEL
    drawn_to = [[(x - charts.LABEL) / full for x in numbers(line, "x1", "x2")] for line in shapes(drawn, "line")]
    whiskers = [
        place for place, line in zip(drawn_to, shapes(drawn, "line"), strict=True) if line.get("y1") == line.get("y2")
    ]
    assert np.allclose(whiskers, [[0.4, 0.7], [0.7, 0.9], [0.1, 0.3]], atol=0.001)
    (guess,) = shapes(drawn, "line", "zero")
    assert numbers(guess, "x1") == pytest.approx([charts.LABEL + 0.1 * full], abs=0.1)
    many = charts.bars("t", ["on"], {str(place): [Interval(0.5, 0.4, 0.6)] for place in range(9)})
    assert shapes(many, "rect")[8].get("class") == "s0"  # the page has eight colours


def test_differences_are_grey_where_zero_is_inside() -> None:
    drawn = charts.differences("t", [("x", Interval(0.1, 0.05, 0.15)), ("y <z>", Interval(0.0, -0.1, 0.1))])
    assert drawn.count('class="s2"') == 1 and drawn.count('class="s0"') == 1
    assert "y &lt;z&gt;" in drawn
    words = "A difference whose name takes more than the width of the drawing, which would cut it off"
    wrapped = charts.differences("t", [(words, Interval(0.1, 0.05, 0.15)), ("x", Interval(0.1, 0.05, 0.15))])
    lines = re.findall(r'y="([\d.]+)" font-size="11"[^>]*>([^<]*)', wrapped)
    assert " ".join(text for _, text in lines) == f"{words} x" and all(len(text) <= charts.NAME for _, text in lines)
    heights = [float(y) for y, _ in lines]
    assert np.diff(heights).tolist() == [charts.LINE, 21 + charts.LINE]  # its interval is below its last line
    touching = charts.differences("t", [("x", Interval(0.1, 0.0, 0.2))])
    assert 'class="s0"' in touching and 'class="s2"' not in touching


def test_a_difference_is_drawn_where_it_lies_and_inside_the_drawing() -> None:
    drawn = charts.differences("t", [("x & y", Interval(-0.3, -0.4, -0.1))])
    (span,) = [line for line in shapes(drawn, "line") if line.get("stroke-linecap")]
    (dot,), (zero,) = shapes(drawn, "circle"), shapes(drawn, "line", "zero")
    (low, high), (mean,), (origin,) = numbers(span, "x1", "x2"), numbers(dot, "cx"), numbers(zero, "x1")
    assert 0 < low < mean < high < origin < charts.WIDTH
    assert (origin - mean) / (origin - low) == pytest.approx(0.3 / 0.4, abs=0.01)
    assert numbers(dot, "cy")[0] < numbers(zero, "y2")[0]  # above the axis
    height = float(ElementTree.fromstring(drawn).attrib["viewBox"].split()[3])
    assert all(numbers(text, "y")[0] <= height for text in shapes(drawn, "text"))


def test_no_label_of_an_axis_is_cut_off() -> None:
    drawn = charts.differences("leakage", [("a over b", Interval(0.01, -0.001, 0.027))])
    labels = re.findall(r'x="([\d.]+)"[^>]*text-anchor="middle">([^<]+)<', drawn)
    assert [text for _, text in labels] == ["-0.04", "-0.02", "0", "0.02", "0.04"]
    assert all(3.5 * len(text) <= float(x) <= charts.WIDTH - 3.5 * len(text) for x, text in labels)


def test_curves_of_a_constant_loss_still_draw() -> None:
    drawn = charts.curves("t", {"mean": [(1.0, 0.3), (2.0, 0.3)]}, "mean", 0)
    assert "nan" not in drawn and drawn.count("<polyline") == 1


def test_a_curve_falls_as_its_loss_does_and_the_bold_one_is_on_top() -> None:
    drawn = charts.curves("t", {"mean": [(1.0, 0.3), (2.0, 0.2)], "up & on": [(1.0, 0.1), (2.0, 0.4)]}, "mean", 9)
    up, mean = shapes(drawn, "polyline")
    assert float(mean.attrib["stroke-width"]) > float(up.attrib["stroke-width"])
    (x, y), (later, lower) = (map(float, point.split(",")) for point in mean.attrib["points"].split())
    assert later > x and lower > y  # pixels count downwards
    assert mean.get("class") == up.get("class") == "s1"
    assert "<polyline" in charts.curves("t", {"mean": [(1.0, 0.3)]}, "mean", 0)  # of a single step


def test_stacked_charts_lie_below_each_other() -> None:
    charts_ = [charts.differences("t", [("x", Interval(0.1, 0.05, 0.15))])] * 2
    whole = ElementTree.fromstring(charts.stack(charts_, ["first", "second"]))
    first, second = whole.findall("{http://www.w3.org/2000/svg}svg")
    heading = whole.findall("{http://www.w3.org/2000/svg}text")[1]
    assert numbers(first, "y")[0] + numbers(first, "height")[0] < numbers(heading, "y")[0] < numbers(second, "y")[0]
    assert numbers(second, "y")[0] + numbers(second, "height")[0] <= float(whole.attrib["viewBox"].split()[3])


def test_curves_are_smoothed_about_each_step_up_to_both_ends() -> None:
    steps = pd.Series(range(10, 1510, 10))
    ramp = _smooth(steps, steps.astype(float))
    assert ramp[0][0] == 10 and ramp[-1][0] == 1500 and not np.isnan(ramp).any()
    assert all(value == pytest.approx(step, abs=10) for step, value in ramp[20:-20])
    assert max(value for _, value in _smooth(steps, (steps == 750).astype(float))) == pytest.approx(1 / 10)
    assert _mean([[(1.0, 0.0), (3.0, 2.0)], [(1.0, 2.0), (2.0, 2.0), (3.0, 2.0)]]) == [(1, 1), (3, 2)]
    stopped_early = [(1.0, 4.0), (2.0, 2.0)]  # of later steps, there is no mean of all
    assert _mean([[(1.0, 0.0), (2.0, 0.0), (3.0, 0.0)], stopped_early]) == [(1, 2), (2, 1)]


def test_scenarios_are_spread_evenly() -> None:
    assert spread(100, 5) == [10, 30, 50, 70, 90]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(0, 5) == []


def test_a_sheet_shows_every_method_on_the_same_scenarios(tmp_path: Path) -> None:
    run = collect(tmp_path, write_run(tmp_path))
    sheet = build(run, "hug")
    assert [panel.heading.split()[0] for panel in sheet.panels] == ["held", "seen"]
    shown = {(line.head, line.tail) for panel in sheet.panels for line in panel.lines}
    assert ("dog", "box") in shown and ("cat", "box") not in shown  # which an exemplar shows
    for panel in sheet.panels:
        for line in panel.lines:
            assert [shot.path.parent.name for shot in line.shots] == METHODS
            assert len({shot.path.name for shot in line.shots}) == 1
    first = render(sheet)
    assert first == render(sheet)
    picture = Image.open(io.BytesIO(first))
    assert picture.format == "PNG" and picture.width < 1000
    line = sheet.panels[0].lines[0]
    sheet.panels[0].lines[0] = dataclasses.replace(line, tail="riding on a wooden horse")  # not to be drawn over
    assert Image.open(io.BytesIO(render(sheet))).width > picture.width


def test_a_sheet_says_what_the_judge_found_and_has_every_scenario_where_none_is_known_as_seen(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    found: dict[str, pd.DataFrame] = {}
    for method in METHODS:
        file = tmp_path / f"data/scores/hug/{method}.csv"
        score_table("hug", method).assign(held_out="").to_csv(file, index=False)
        found[method] = score_table("hug", method).set_index(["head", "tail"])
    (panel,) = build(collect(tmp_path, params), "hug").panels
    assert panel.heading == "scenarios" and len(panel.lines) == 5
    for line in panel.lines:
        for shot, method in zip(line.shots, METHODS, strict=True):
            row = found[method].loc[line.head, line.tail]
            assert shot.path.name == row["file"]
            assert (shot.relation_right, shot.entities_right) == (row["relation_accuracy"], row["entity_accuracy"])
    for method in METHODS:
        file = tmp_path / f"data/scores/hug/{method}.csv"
        score_table("hug", method).assign(held_out="", relation_accuracy=np.nan).to_csv(file, index=False)
    (panel,) = build(collect(tmp_path, params), "hug").panels
    assert {shot.relation_right for line in panel.lines for shot in line.shots} == {None}
    page = html(tell(collect(tmp_path, params)))
    of_hug = page.partition('id="sheet-hug"')[2].partition("<h3")[0]
    shown = re.findall(r'<i class="dot(?: right)?"( style="visibility:hidden")?></i>', of_hug)
    assert [bool(hidden) for hidden in shown] == [True, False] * sum(len(line.shots) for line in panel.lines)


def test_a_sheet_draws_every_picture_whole_with_its_marks(tmp_path: Path) -> None:
    def picture(green: int, blue: int) -> Path:
        file = tmp_path / f"{green}-{blue}.png"
        Image.new("RGB", (8, 8), (255, green, blue)).save(file)
        return file

    shots = [
        [Shot(picture(0, 20 * row + 60 * column), column == 0, row == 0) for column in (0, 1)] for row in (0, 1, 2)
    ]
    lines = [SheetLine("cat", "box", line) for line in shots]
    panels = [Panel("seen", lines), Panel("held out", lines[:1])]
    exemplars = [picture(100, 20 * place) for place in range(10)]
    sheet = Sheet("inside", "inside", "inside", ["a", "b"], exemplars, panels, {})
    drawn = np.asarray(Image.open(io.BytesIO(render(sheet))).convert("RGB"))

    def place(colour: tuple[int, int, int], part: np.ndarray = drawn) -> tuple[np.ndarray, np.ndarray]:
        return np.nonzero((part == colour).all(axis=-1))

    sides = {len(place((255, 100, 20 * number))[0]) ** 0.5 for number in range(10)}
    assert len(sides) == 1 and 40 < sides.pop() <= CELL  # none is covered or cut off
    for row, column in product((1, 2), (0, 1)):  # those of the first row are in both panels
        y, x = place((255, 0, 20 * row + 60 * column))
        assert np.ptp(y) == np.ptp(x) == CELL - 1
        shot = drawn[y.min() : y.max() + 1, x.min() : x.max() + 1]
        right, wrong = (place(ImageColor.getrgb(colour), shot)[1] for colour in (RIGHT, WRONG))
        assert len(wrong) and (len(right) > 0) == (column == 0)
        assert not len(right) or right.max() < wrong.min()  # the first dot is the relation's
    unknown = dataclasses.replace(lines[1], shots=[Shot(shot.path, None, None) for shot in lines[1].shots])
    bare = np.asarray(Image.open(io.BytesIO(render(dataclasses.replace(sheet, panels=[Panel("seen", [unknown])])))))
    y, x = place((255, 0, 20), bare)
    assert len(y) == CELL * CELL  # no mark where there was no choice
    for name in ("head", "tail"):
        panels[1].lines[0] = dataclasses.replace(lines[0], **{name: "dog"})
        other = np.asarray(Image.open(io.BytesIO(render(sheet))))
        assert (other != drawn).any()


@pytest.mark.parametrize("count", [0, 1, 200])
def test_a_sheet_shows_as_many_exemplars_as_can_be_told_apart(count: int, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (0, 200, 0)).save(tmp_path / "exemplar.png")
    sheet = Sheet("inside", "inside", "inside", ["a"], [tmp_path / "exemplar.png"] * count, [], {})
    drawn = np.asarray(Image.open(io.BytesIO(render(sheet))).convert("RGB"))
    x = np.nonzero((drawn == (0, 200, 0)).all(axis=-1).any(axis=0))[0]
    widths = [len(part) for part in np.split(x, np.nonzero(np.diff(x) > 1)[0] + 1) if len(part)]
    assert len(widths) == min(count, 6) and {LEAST <= width <= CELL for width in widths} <= {True}
    assert count == 0 or drawn.shape[1] - x.max() > GAP


def test_an_object_is_not_called_what_its_plain_words_say(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    benchmark = tmp_path / "data/benchmark/miniature.yaml"
    entries = read_yaml(benchmark, "benchmark file")
    entries["relations"]["hug"] |= {"words": "bear", "heads": [""], "asymmetric": False}
    benchmark.write_text(json.dumps(entries))  # which YAML includes
    run = collect(tmp_path, params)
    assert build(run, "hug").title == "hug (plain words: bear)"
    assert build(run, "inside").title == "inside"


@pytest.mark.parametrize("change", ["seed", "rows"])
def test_methods_scored_on_other_seeds_or_scenarios_are_not_compared(change: str, tmp_path: Path) -> None:
    params = write_run(tmp_path)
    file = tmp_path / "data/scores/hug/reversion.csv"
    rows = pd.read_csv(file, keep_default_na=False)
    (rows.assign(seed=rows["seed"] + 1) if change == "seed" else rows.head(2)).to_csv(file, index=False)
    with pytest.raises(
        UserError, match=r"scores of 'hug' in '.*scores' are of other scenarios or seeds: run `dvc repro`"
    ):
        collect(tmp_path, params)


def test_the_report_writes_its_five_results(tmp_path: Path) -> None:
    write_report(tmp_path, write_run(tmp_path))
    reports = tmp_path / "reports"
    assert sorted(path.name for path in reports.iterdir()) == [
        "grids",
        "metrics.json",
        "report.html",
        "report.md",
        "scores.csv",
    ]
    assert sorted(path.name for path in (reports / "grids").iterdir()) == ["hug.png", "inside.png"]
    metrics = json.loads((reports / "metrics.json").read_text())
    assert list(metrics) == METHODS
    assert all(list(values) == list(READINGS) for values in metrics.values())
    assert metrics["relation_words"]["leakage"] is None and metrics["reversion"]["leakage"] is not None
    scores = pd.read_csv(reports / "scores.csv")
    assert len(scores) == 2 * 3 * 12 and list(scores.columns[-2:]) == ["leakage", "judge"]
    for method, values in metrics.items():
        own = scores[scores["method"] == method]
        for name, value in values.items():
            mean = own[name].sum() / own[name].count() if own[name].notna().any() else None
            assert value == pytest.approx(mean, abs=1e-5), (method, name)


def test_the_report_shows_the_forms_of_a_token_that_has_several(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    Image.new("RGB", (300, 100), "#123").save(tmp_path / "data/images/hug/reversion" / FORMS_FILE)
    write_report(tmp_path, params)
    reports = tmp_path / "reports"
    drawn = (reports / "grids/hug-reversion.png").read_bytes()
    assert drawn == (tmp_path / "data/images/hug/reversion" / FORMS_FILE).read_bytes()
    assert (reports / "report.html").read_text().count(base64.b64encode(drawn).decode()) == 1
    assert (reports / "report.md").read_text().count("(grids/hug-reversion.png)") == 1


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        write_report(tmp_path / name, write_run(tmp_path / name))
        files = sorted((tmp_path / name / "reports").rglob("*.*"))
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]


def test_arms_that_params_do_not_name_are_not_read(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    write_arm(tmp_path, "inside", "dropped")
    write_report(tmp_path, params)
    assert "dropped" not in (tmp_path / "reports/scores.csv").read_text()


class Addresses(HTMLParser):
    """Collects every src and href, and whether tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids |= {value or "" for name, value in attrs if name == "id"}
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    write_report(tmp_path, write_run(tmp_path))
    text = (tmp_path / "reports/report.html").read_text(encoding="utf-8")
    parser = Addresses()
    parser.feed(text)
    assert parser.open == []
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in parser.found)
    assert {address[1:] for address in parser.found if address.startswith("#")} <= parser.ids
    assert "@import" not in text and "url(" not in text and "<script" not in text
    assert "3.png is nearly the same picture as 1.png." in text and "2.png shows &lt;nothing&gt;." in text
    assert (
        "0.981" in text
        and "On 400 real scenes" in text
        and "<td>400</td>" not in text
        and "steer_weight" in text
        and "e" * 64 in text
    )
    assert "<dt>Entity similarity</dt><dd>Cosine between the" in text and "Source: CLIPScore, unscaled" in text
    assert "prefers-color-scheme:dark" in text


def test_the_contents_name_what_the_page_has(tmp_path: Path) -> None:
    story = tell(collect(tmp_path, write_run(tmp_path)))
    for without in ({"curves": []}, {"groups": []}):
        parser = Addresses()
        parser.feed(html(dataclasses.replace(story, **without)))
        named = {address[1:] for address in parser.found if address.startswith("#")}
        assert len(named) == 9 and named <= parser.ids


@pytest.mark.parametrize(("size", "side"), [((400, 300), 160), ((64, 96), 64)])
@pytest.mark.filterwarnings("error")
def test_the_page_holds_pictures_no_larger_than_it_shows_them(
    size: tuple[int, int], side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", size).save(tmp_path / "0.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", size[0] * size[1] - 1)  # as of a photograph that Pillow warns of
        inlined = data_uri(tmp_path / "0.png")
    held = base64.b64decode(inlined.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(held)).size == (side, side)


def test_the_page_says_when_nothing_is_known_of_the_judge(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data/miniature/judge/accuracy.json").unlink()
    write_report(tmp_path, params)
    assert "Nothing is recorded about the accuracy" in (tmp_path / "reports/report.md").read_text()
    judge = "bases.miniature.judge"
    apply_overrides(tmp_path / "params.yaml", [f"{judge}.model=ViT-L-14", f"{judge}.pretrained=openai"])
    write_report(tmp_path, load_params(tmp_path / "params.yaml"))
    assert "by the judge `ViT-L-14/openai`" in (tmp_path / "reports/report.md").read_text()


def test_several_images_of_a_scenario_count_as_one_scenario(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    for relation, method in product(RELATIONS, METHODS):
        file = tmp_path / "data/scores" / relation / f"{method}.csv"
        both(*(score_table(relation, method, seed) for seed in (0, 1))).drop(columns="leakage").to_csv(
            file, index=False
        )
    write_report(tmp_path, params)
    text = (tmp_path / "reports/report.md").read_text()
    assert "All 24 scenarios of 2 relations, 2 images each" in text and "144 generated images" in text
    assert (tmp_path / "reports/grids/hug.png").is_file()


def test_the_page_says_which_scenarios_it_is_of_and_of_what_the_judge_knows_nothing(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    entry = "words: kissing\nasymmetric: true\nheads: [cat, dog, panda, child]\ntails: [box, cup, vase]\n"
    for method in METHODS:
        write_arm(tmp_path, "kissing", method)
    shutil.copytree(tmp_path / "data/relations/hug", tmp_path / "data/relations/kissing")
    (tmp_path / "data/relations/kissing/relation.yaml").write_text(entry)
    for kind in ("verdicts", "judged"):
        shutil.copy(tmp_path / "data" / kind / "hug.json", tmp_path / "data" / kind / "kissing.json")
    write_report(tmp_path, params)
    for page in ("report.md", "report.html"):
        text = (tmp_path / "reports" / page).read_text()
        assert "All 24 scenarios of 2 relations" in text and "not among them" not in text
    apply_overrides(tmp_path / "params.yaml", ["generate.pairs=validation", "relations=[kissing]"])
    write_report(tmp_path, load_params(tmp_path / "params.yaml"))
    for page in ("report.md", "report.html"):
        text = (tmp_path / "reports" / page).read_text()
        assert "on 1 relation of the" in text.replace("\n", " ") and "data/miniature/judge" in text
        assert "The 12 validation scenarios of 1 relation" in text and "kissing was not among them" in text
    (guess,) = shapes(tell(collect(tmp_path, load_params(tmp_path / "params.yaml"))).bars[1].svg, "line", "zero")
    middle = (charts.LABEL + charts.WIDTH - charts.RIGHT) / 2  # the judge guesses among two relations that it knows
    assert numbers(guess, "x1") == pytest.approx([middle], abs=0.1)


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        (METHODS, ["invert.reversion.steer_weight=0.1", "of reversion differs"]),
        (["relation_words", "textual_inversion", "multires"], ["invert.multires.steps=60", "of multires differs"]),
        (["textual_inversion", "relation_words"], ["generate.seed=1", "relation words − textual inversion"]),
        (["relation_words", "imported"], ["generate.seed=1", "imported − relation words"]),
    ],
)
def test_the_page_tells_only_of_what_ran(methods: list[str], told: list[str], tmp_path: Path) -> None:
    write_report(tmp_path, write_run(tmp_path, methods=methods))
    text = (tmp_path / "reports/report.md").read_text()
    assert all(words in text for words in told)
    assert ("steer_weight=0.1" in text) == ("reversion" in methods)


def test_under_a_preset_the_page_tells_its_numbers_and_how_to_change_them(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    write_report(tmp_path, params)
    plain = (tmp_path / "reports/report.md").read_text()
    assert "    steps: 120\n" in plain and "-S invert.reversion.steer_weight=0.1 " in plain
    apply_overrides(tmp_path / "params.yaml", ["invert.preset=official"])
    write_report(tmp_path, load_params(tmp_path / "params.yaml"))
    under = (tmp_path / "reports/report.md").read_text()
    assert "    steps: 3000\n" in under and "steps: 120" not in under and "\nmake reproduce  " in under
    assert "-S ++presets.reversion.official.steer_weight=0.1 " in under
    for preset in ("official", "short"):  # DVC refuses a name that the file lacks
        apply_overrides(tmp_path / "params.yaml", [f"++presets.reversion.{preset}.steer_weight=0.1"])


def test_the_page_tells_the_parameters_in_force_and_no_others(tmp_path: Path) -> None:
    file = Path(shutil.copy("params.yaml", tmp_path))
    shown = used_parameters(load_params(file))
    sections = ["exemplars", "validate", "invert", "generate", "score", "report"]
    assert list(shown) == ["base", "bases", "relations", "methods", *sections]
    assert list(shown["bases"]) == [shown["base"]]
    for change, preset in (("bases.miniature.preset=official", "official"), ("invert.preset=short", "short")):
        apply_overrides(file, [change])
        assert (
            used_parameters(load_params(file))["invert"]["reversion"]
            == shown["invert"]["reversion"] | load_params(file).presets["reversion"][preset]
        )


def test_a_preset_that_changes_while_the_report_is_made_is_told(tmp_path: Path) -> None:
    file = Path(shutil.copy("params.yaml", tmp_path))
    apply_overrides(file, ["invert.preset=official"])
    params = load_params(file)
    used_parameters(params)
    params.require_unchanged()
    apply_overrides(file, ["presets.reversion.official.steps=7"])
    with pytest.raises(UserError, match=r"changed while this ran, .*: presets\."):
        params.require_unchanged()


@pytest.mark.parametrize("others", [0, 1])
def test_a_relation_of_ones_own_needs_few_of_the_benchmark_beside_it(others: int, tmp_path: Path) -> None:
    run = collect(tmp_path, write_run(tmp_path))
    mine, *rest = run.benchmark.relations.values()
    relations = {each.name: each for each in (dataclasses.replace(mine, own=True), *rest[:others])}
    benchmark = dataclasses.replace(run.benchmark, relations=relations)
    rows = run.rows[run.rows["relation"] == mine.name]
    alone = dataclasses.replace(run, relations=[mine.name], rows=rows, benchmark=benchmark)
    guessing = [["stroke-dasharray" in chart.svg for chart in tell(each).bars] for each in (run, alone)]
    assert guessing == [[False, True, False], [False, False, False]]


@pytest.mark.parametrize(
    ("subject", "told", "change"),
    [
        ("textual_inversion", "textual inversion − reversion", "invert.textual_inversion.steps=60"),
        ("multires", "reversion − textual inversion", "invert.reversion.steer_weight=0.1"),  # it did not run
    ],
)
def test_the_report_is_about_the_method_that_params_name(subject: str, told: str, change: str, tmp_path: Path) -> None:
    write_run(tmp_path)
    apply_overrides(tmp_path / "params.yaml", [f"report.subject={subject}"])
    write_report(tmp_path, load_params(tmp_path / "params.yaml"))
    page = (tmp_path / "reports/report.md").read_text(encoding="utf-8")
    assert f"| {told} |" in page and f"-S {change} " in page
    apply_overrides(tmp_path / "params.yaml", ["report.subject=revrsion"])
    with pytest.raises(UserError, match=r"Unknown method 'revrsion'\. Did you mean 'reversion'"):
        write_report(tmp_path, load_params(tmp_path / "params.yaml"))


@pytest.mark.parametrize("name", ["verdicts/hug.json", "concepts/hug/reversion/concept.json"])
def test_a_result_that_is_missing_is_named_with_what_makes_it(name: str, tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data" / name).unlink()
    with pytest.raises(UserError, match=rf"{name}' does not exist: run `dvc repro` to make it"):
        write_report(tmp_path, params)


def test_markdown_tables_have_equally_many_cells(tmp_path: Path) -> None:
    write_report(tmp_path, write_run(tmp_path))
    text = (tmp_path / "reports/report.md").read_text(encoding="utf-8")
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    assert "](grids/hug.png)" in text
    assert "- hug: 3.png is nearly the same picture as 1.png.\n- hug: 2.png shows <nothing>.\n" in text
    assert text.count("\n## ") == 10


def test_every_part_of_the_report_tells_of_what_it_names(tmp_path: Path) -> None:
    run = collect(tmp_path, write_run(tmp_path))
    story = tell(run)
    ours, theirs = (run.rows.loc[run.rows["method"] == name, "scene_accuracy"].mean() for name in METHODS[:0:-1])
    assert f"of reversion differs from that of textual inversion by +{ours - theirs:.3f} (" in story.verdicts[0]
    inside = run.rows[(run.rows["relation"] == "inside") & (run.rows["method"] == "reversion")]
    assert story.relations.lines[0].cells[2].mean == pytest.approx(inside["scene_accuracy"].mean())
    assert [len(table.headings) for table in (story.metrics, *story.leads)] == [len(READINGS)] * 3
    assert [chart.caption for chart in story.bars] == ["scene accuracy", "relation accuracy", "entity accuracy"]
    curves = {chart.caption: {line.get("class") for line in shapes(chart.svg, "polyline")} for chart in story.curves}
    assert curves == {  # in the colour of the method's bars; a total that is its only term is drawn once
        "textual inversion: denoise": {"s1"},
        "reversion: denoise": {"s2"},
        "reversion: steer": {"s2"},
        "reversion: total": {"s2"},
    }
    assert [name for name, _ in story.hashes] == [
        "base data/miniature/base",
        "judge data/miniature/judge",
        "exemplars hug",
        "exemplars inside",
    ]
    assert list(story.warnings) == ["hug"] and story.facts["exemplars"] == 8
    assert list(parse_yaml(story.parameters, "parameters")) == list(run.parameters)


def test_both_pages_show_all_of_the_story(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    write_report(tmp_path, params)
    page, text = ((tmp_path / "reports" / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    story = tell(collect(tmp_path, params))
    tables = [story.headline, story.metrics, *story.groups, *story.leads]
    for table in tables:
        for cell, bold in (
            (cell, bold) for line in table.lines for cell, bold in zip(line.cells, line.bold, strict=True)
        ):
            if cell is None:  # the plain words' leakage
                assert '<td class="quiet">–</td>' in page and "| – |" in text
                continue
            mean, low, high = (figure(value, table.signed) for value in cell)
            best, strong = (' class="best"', "**") if bold else ("", "")
            assert f"<td{best}>{mean}<small>{low} … {high}</small></td>" in page
            assert f"| {strong}{mean}{strong} ({low} … {high}) |" in text
    assert page.count('class="best"') == sum(sum(line.bold) for table in tables for line in table.lines)
    assert all(words in page and f"- {words}\n" in text for words in story.verdicts)
    assert Path("relinv/report/style.css").read_text(encoding="utf-8") in page
    assert all(chart.svg in page for chart in [*story.bars, *story.curves])
    marks = re.findall(r'<i class="dot( right)?"></i><i class="dot( right)?"></i></span>', page)
    lines = [line for sheet in story.sheets for panel in sheet.panels for line in panel.lines]
    assert [(bool(first), bool(second)) for first, second in marks] == [
        (shot.relation_right, shot.entities_right) for line in lines for shot in line.shots
    ]


@pytest.mark.parametrize("change", ["level=0.5", "seed=1"])
def test_every_interval_is_drawn_as_the_parameters_say(change: str, tmp_path: Path) -> None:
    before = tell(collect(tmp_path, write_run(tmp_path)))
    apply_overrides(tmp_path / "params.yaml", [f"report.{change}"])
    after = tell(collect(tmp_path, load_params(tmp_path / "params.yaml")))
    for old, new in (
        [table.lines for table in pair]
        for pair in zip(*([s.headline, s.metrics, *s.leads, s.relations] for s in (before, after)), strict=True)
    ):
        assert [[cell and cell.mean for cell in line.cells] for line in old] == [
            [cell and cell.mean for cell in line.cells] for line in new
        ]
        assert old != new
    assert before.verdicts != after.verdicts and before.bars != after.bars and before.groups != after.groups


def test_a_method_is_not_told_to_differ_from_itself(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    apply_overrides(params.file, ["report.subject=textual_inversion"])
    assert tell(collect(tmp_path, load_params(params.file))).verdicts == []


def test_one_method_alone_makes_a_report(tmp_path: Path) -> None:
    write_report(tmp_path, write_run(tmp_path, ["inside"], ["relation_words"]))
    assert "Loss curves" not in (tmp_path / "reports/report.md").read_text()


def test_missing_scores_are_named(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data/scores/hug/reversion.csv").unlink()
    with pytest.raises(UserError, match=r"hug/reversion\.csv' do not exist: run `dvc repro`"):
        write_report(tmp_path, params)
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("other", ["hug/relation_words", "inside/reversion"])
def test_scores_of_another_arm_are_not_taken_for_ones_own(other: str, tmp_path: Path) -> None:
    params = write_run(tmp_path)
    shutil.copyfile(tmp_path / f"data/scores/{other}.csv", tmp_path / "data/scores/hug/reversion.csv")
    with pytest.raises(
        UserError, match=r"^The scores '.*hug/reversion\.csv' are another relation's or method's: delete"
    ):
        write_report(tmp_path, params)


def test_scores_by_another_judge_are_not_reported_as_this_ones(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    scores = tmp_path / "data/scores/hug/reversion.csv"
    rows = parse_rows(scores.read_bytes(), "hug")
    fingerprint = judge_fingerprint(params.judge(), tmp_path)
    rows.assign(judge=fingerprint).to_csv(scores, index=False)
    (tmp_path / "data/miniature/judge/.DS_Store").write_bytes(b"looked at")
    write_report(tmp_path, params)
    assert fingerprint in (tmp_path / "reports/report.md").read_text()
    rows.assign(judge="0123456789abcdef").to_csv(scores, index=False)
    with pytest.raises(UserError, match=r"'hug' by 'reversion' are by another judge than 'data/.*' is now: change the"):
        write_report(tmp_path, params)
    rows.assign(judge=fingerprint).to_csv(scores, index=False)
    reading = tmp_path / "data/judged/hug.json"
    reading.write_text(json.dumps(json.loads(reading.read_text()) | {"judge": "0123456789abcdef"}))
    with pytest.raises(UserError, match="scores of the exemplars of 'hug' are by another judge"):
        write_report(tmp_path, params)
    reading.write_text('{"pictures": "four"}')
    with pytest.raises(UserError, match=r"hug\.json' is damaged: delete it, and run `dvc repro` to make it"):
        write_report(tmp_path, params)


def test_the_page_says_how_well_the_judge_reads_what_is_known(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    write_report(tmp_path, params)
    for page in ("report.md", "report.html"):
        text = " ".join((tmp_path / "reports" / page).read_text().split())
        assert "In 7 of 8 of these pictures the judge finds the right relation; by chance it would in 4." in text
        assert "It does not find all of hug (3 of 4)." in text and "It was not shown" not in text
    reading = tmp_path / "data/judged/hug.json"
    reading.write_text(json.dumps(json.loads(reading.read_text()) | {"right": 4, "unread": 2, "choices": 8}))
    write_report(tmp_path, params)
    for page in ("report.md", "report.html"):
        text = " ".join((tmp_path / "reports" / page).read_text().split())
        assert "In 8 of 8 of these pictures the judge finds the right relation; by chance it would in 2.5." in text
        assert "It does not find" not in text and "It was not shown 2 more, whose captions are too long for it." in text


def test_the_page_says_how_well_vqa_score_reads_what_is_known(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    vqa = "{model: some/model, precision: bf16}"
    assert tell(collect(tmp_path, params)).judge["vqa_right"] is None  # no model is named
    apply_overrides(params.file, [f"bases.miniature.judge.vqa={vqa}"])
    for right, relation in enumerate(RELATIONS, 2):
        reading = tmp_path / f"data/judged/{relation}.json"
        reading.write_text(json.dumps(json.loads(reading.read_text()) | {"vqa_right": right}))
    write_report(tmp_path, load_params(params.file))
    for page, name in (("report.md", "`some/model`"), ("report.html", "<code>some/model</code>")):
        text = " ".join((tmp_path / "reports" / page).read_text().split())
        assert f"The VQAScore by {name} is highest for the right relation in 5. If many are missed" in text
        assert "VQAScore ↑" in text and "+ some/model@main" in text


def test_what_nothing_defines_is_in_no_table(tmp_path: Path) -> None:
    params = write_run(tmp_path, methods=METHODS[1:])  # so that leakage is not defined either
    for path in (tmp_path / "data/scores").rglob("*.csv"):
        parse_rows(path.read_bytes(), str(path)).assign(vqa_score=float("nan")).to_csv(path, index=False)
    story = tell(collect(tmp_path, params))
    for table in (story.headline, story.metrics, *story.leads, *story.groups):
        assert {"VQAScore\u00a0↑", "leakage"} & {*table.headings} == set()
        assert all(any(line.cells[place] for line in table.lines) for place in range(len(table.headings)))
    assert "VQAScore" not in {metric.TITLE for metric in story.metric_files}
    write_report(tmp_path, params)
    assert json.loads((tmp_path / "reports/metrics.json").read_text())["reversion"]["vqa_score"] is None


def test_a_damaged_concept_is_named(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data/concepts/hug/reversion/concept.json").write_text("{}")
    with pytest.raises(UserError, match=r"hug/reversion/concept\.json' lacks relation, .*: invert the relation again"):
        write_report(tmp_path, params)


@pytest.mark.parametrize(
    ("text", "told"),
    [('{"direction": "good"}', "'direction' is 'good'"), ('{"scenes": NaN}', "'scenes' is nan"),
     ('{"scenes": Infinity}', "'scenes' is inf")],
)  # fmt: skip
def test_a_damaged_accuracy_of_the_judge_is_named(text: str, told: str, tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data/miniature/judge/accuracy.json").write_text(text)
    with pytest.raises(UserError, match=rf"Parameter {told} in .*accuracy\.json: it must be a .*number\.$"):
        write_report(tmp_path, params)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("step,denoise\n1,much\n", "are damaged"), ("step,denoise\n", "hold no steps"), ("denoise\n1\n", "hold no steps")],
)
def test_damaged_losses_are_named(text: str, fault: str, tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data/concepts/hug/reversion/losses.csv").write_text(text)
    with pytest.raises(UserError, match=rf"losses\.csv' {fault}"):
        write_report(tmp_path, params)


def test_the_stage_never_imports_torch(tmp_path: Path) -> None:
    write_run(tmp_path)
    code = "import sys; from stages.report import report; report(); assert 'torch' not in sys.modules"
    here = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reports/report.html").stat().st_size < 8_000_000
