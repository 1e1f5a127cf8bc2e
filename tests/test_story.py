"""What the report says of a run."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from itertools import product
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from relinv.errors import UserError
from relinv.files import parse_yaml
from relinv.params import OF_ALL_METHODS, load_params
from relinv.report import charts
from relinv.report.build import write_report
from relinv.report.collect import collect, used_parameters
from relinv.report.rows import READINGS, parse_rows
from relinv.report.story import tell
from relinv.report.tables import figure
from tests.reporting import METHODS, RELATIONS, numbers, score_table, scored, shapes, write_arm, write_run


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
        scored(*(score_table(relation, method, seed) for seed in (0, 1))).drop(columns="leakage").to_csv(
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
    assert {*shown["invert"]} - {*OF_ALL_METHODS} == {*shown["methods"]}
    for change, preset in (("bases.miniature.preset=official", "official"), ("invert.preset=short", "short")):
        apply_overrides(file, [change])
        assert (
            used_parameters(load_params(file))["invert"]["reversion"]
            == shown["invert"]["reversion"] | load_params(file).presets["reversion"][preset]
        )


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
