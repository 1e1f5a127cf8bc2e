"""Contact sheets: which scenarios they show, and what their marks say."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor

from relinv.exemplars import Exemplar, ExemplarSet
from relinv.files import read_yaml
from relinv.report.collect import collect
from relinv.report.pages import html
from relinv.report.rows import shows
from relinv.report.sheets import CELL, GAP, LEAST, RIGHT, WRONG, Panel, Sheet, Shot, build, render, spread
from relinv.report.sheets import Line as SheetLine
from relinv.report.story import tell
from tests.reporting import METHODS, score_table, write_run


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
        ("lamp", "beach", False),  # both after it
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
