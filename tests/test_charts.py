"""Bars and curves as SVG."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from relinv.report import charts
from relinv.report.story import _mean, _smooth
from relinv.statistics import Interval
from tests.reporting import numbers, shapes


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
