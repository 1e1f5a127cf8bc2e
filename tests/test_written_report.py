"""A report as it is written: its pictures, colours, curves, hashes and parameters, each its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from PIL import Image

from relinv.files import parse_yaml, read_yaml
from relinv.images import FORMS_FILE
from relinv.params import load_params
from relinv.report.build import write_report
from relinv.report.charts import curves
from relinv.report.collect import Run, collect
from relinv.report.sheets import build
from relinv.report.story import Story, tell
from tests.reporting import HEADS, METHODS, TAILS, write_run

PERCENT = "\N{NO-BREAK SPACE}%"


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, at a level of its own, where an earlier run had left pictures."""
    root = tmp_path_factory.mktemp("reported")
    params = write_run(root)
    apply_overrides(params.file, ["report.level=0.5", "report.resamples=100"])
    for name in ("kissing.png", "hug-multires.png"):
        (root / "reports/grids" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "reports/grids" / name).write_bytes(b"a picture")
    write_report(root, load_params(params.file))
    return root


@pytest.fixture(scope="module")
def run(reported: Path) -> Run:
    """What was reported."""
    return collect(reported, load_params(reported / "params.yaml"))


@pytest.fixture(scope="module")
def story(run: Run) -> Story:
    """What the report says of it."""
    return tell(run)


def test_a_report_tells_the_level_of_its_intervals_wherever_it_tells_one(reported: Path) -> None:
    for page in ("report.md", "report.html"):
        text = (reported / "reports" / page).read_text(encoding="utf-8")
        assert f"50{PERCENT} interval (cluster" in text and f"(50{PERCENT} interval" in text
        assert f"95{PERCENT}" not in text


def test_a_report_holds_the_pictures_of_its_own_relations_alone(reported: Path) -> None:
    assert sorted(path.name for path in (reported / "reports/grids").iterdir()) == ["hug.png", "inside.png"]


def test_a_report_tells_the_hash_of_each_thing_beside_its_name(run: Run, story: Story) -> None:
    assert story.hashes == [
        ("base data/miniature/base", "b" * 64),
        ("judge data/miniature/judge", run.judge["fingerprint"]),
        ("exemplars hug", "e" * 64),
        ("exemplars inside", "e" * 64),
    ]


def test_the_legend_has_the_colours_of_the_bars(reported: Path) -> None:
    page = (reported / "reports/report.html").read_text(encoding="utf-8")
    legend = re.findall(r'<i class="(s\d)"></i>([^<]+)<', page)
    assert [name for _, name in legend] == [method.replace("_", " ") for method in METHODS]
    bars = re.findall(r"<g><title>inside, ([^:]+):[^<]*</title><rect class=\"(s\d)\"", page)
    assert {(colour, name) for name, colour in bars} == set(legend)


def test_a_sheet_shows_the_exemplars_of_its_relation_and_scenarios_from_all_over_its_grid(
    reported: Path, run: Run
) -> None:
    sheet = build(run, "hug")
    assert sheet.exemplars == [reported / f"data/relations/hug/{number}.png" for number in range(4)]
    grid = [(head, tail) for head in HEADS for tail in TAILS]
    held_out, seen = ([(line.head, line.tail) for line in panel.lines] for panel in sheet.panels)
    assert held_out == [grid[place] for place in (3, 6, 9)]  # all but the first, which an exemplar shows
    assert seen == [grid[place] for place in (1, 4, 7, 8, 11)]  # of 1, 2, 4, 5, 7, 8, 10 and 11


def test_a_sheet_shows_the_forms_of_every_token_that_has_several(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    forms = {name: tmp_path / "data/images/hug" / name / FORMS_FILE for name in METHODS[:2]}
    for file in forms.values():
        Image.new("RGB", (8, 8)).save(file)
    assert build(collect(tmp_path, params), "hug").forms == forms


def test_the_thick_curve_is_the_mean_and_its_axis_counts_upwards(story: Story) -> None:
    for chart in story.curves:
        thick = re.findall(r'stroke-width="2\.5" points="[^"]*"><title>([^<]*)<', chart.svg)
        assert thick == ["mean"]
    drawn = curves("t", {"mean": [(1.0, 0.2), (2.0, 0.4)]}, "mean", 0)
    labels = re.findall(r'y="([\d.]+)" font-size="12" text-anchor="end">([^<]*)<', drawn)
    assert [text for _, text in sorted(labels, key=lambda label: float(label[0]))] == ["0.4", "0.3", "0.2"]


def test_a_report_tells_each_section_as_it_stands_in_the_parameters(reported: Path, story: Story) -> None:
    given, told = read_yaml(reported / "params.yaml"), parse_yaml(story.parameters, "parameters")
    same = ["base", "relations", "methods", "exemplars", "validate", "generate", "score", "report"]
    assert {name: told[name] for name in same} == {name: given[name] for name in same}
    assert told["bases"] == {given["base"]: given["bases"][given["base"]]}


def test_both_pages_tell_the_judges_accuracies(reported: Path) -> None:
    text, page = ((reported / "reports" / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    for name, accuracy in (("relation accuracy", "0.981"), ("direction", "0.957")):
        assert f"| {name} | {accuracy} |\n" in text
        assert f'<tr><th scope="row">{name}</th><td>{accuracy}</td></tr>' in page
