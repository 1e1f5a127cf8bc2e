"""Comparing revisions: what is paired, and what is told."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import MagicMock

import pandas as pd
import pytest
from dvc.utils.hydra import apply_overrides

from relinv.errors import UserError
from relinv.params import load_params
from relinv.report.compare import Comparison, as_html, as_lines, compare, require_html
from relinv.report.revisions import params_at, scores_at
from relinv.report.rows import format_rows, with_leakage
from relinv.report.tables import DIFFERENCES
from relinv.statistics import Bootstrap
from stages.compare import compare as compare_command
from stages.study import study as study_command
from tests.reporting import FEW, score_table, write_run
from tests.studying import HERE, PARAMS


def test_tables_replace_nothing_that_a_comparison_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "reports/scores.csv"):
        with pytest.raises(UserError, match=rf"^The tables in '{name}' would be HTML by another name: let"):
            compare_command(["main", "workspace"], html=Path(name))
    require_html(Path("COMPARED.HTML"))


def test_other_scenes_at_the_same_places_are_not_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    table = with_leakage(score_table("inside", "reversion").assign(scene_accuracy=0.0))
    moved = table.assign(scene_accuracy=1.0)
    moved.loc[moved.index < 9, "head"] = "kangaroo"  # 3 of 12 scenes are those of the first
    moved.loc[moved.index >= 10, "scene_accuracy"] = 0.0
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: {"a": table, "b": moved}[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: {})
    means, differences = compare(Path(), ["a", "b"], FEW).methods["reversion"]
    assert means.caption == "Means with intervals over the 3 scenarios that all have"
    assert [line.cells[0].mean for line in means.lines] == pytest.approx([0, 1 / 3])
    assert differences.lines[0].cells[0].mean == pytest.approx(1 / 3)
    moved.loc[moved.index == 9, "scene_accuracy"] = 0.0
    same = compare(Path(), ["a", "b"], FEW)  # in the scenes they share
    assert same.same == ["reversion"]
    assert as_lines(same).splitlines()[1:] == ["The same on all scenarios they share: reversion"]
    page = as_html(same)
    assert "<p>The same on all scenarios they share: reversion.</p>" in page and "<h2>reversion" not in page
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: tables[revision])
    tables = {"a": table, "b": table, "c": table.assign(method="multires")}
    third = compare(Path(), ["a", "b", "c"], FEW)  # which did not run the method that the others agree in
    assert third.same == [] and len(third.methods["reversion"]) == 2
    tables["b"] = moved
    moved["head"] = "kangaroo"
    (means,) = compare(Path(), ["a", "b"], FEW).methods["reversion"]
    assert means.caption.endswith("each over its own scenarios, for none is in all")
    assert [line.cells[0].mean for line in means.lines] == pytest.approx([0, 9 / 12])


def test_a_grid_that_has_grown_shares_the_scenes_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    table = with_leakage(score_table("inside", "reversion").assign(scene_accuracy=0.0))
    grown = table.assign(scene_accuracy=1.0, index=table["index"] + table["index"] // 4)  # a tail more for each head
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: {"a": table, "b": grown}[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: {})
    means, differences = compare(Path(), ["a", "b"], FEW).methods["reversion"]
    assert means.caption == "Means with intervals over the 12 scenarios that all have"
    assert differences.lines[0].cells[0].mean == 1


def test_scenes_of_another_tail_are_others_and_scores_are_the_same_only_if_all_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = with_leakage(score_table("inside", "reversion").assign(direction=0.0))
    turned, moved = table.assign(direction=1.0), table.assign(direction=1.0)
    moved.loc[moved.index < 9, "tail"] = "kangaroo"
    scores = {"a": table, "turned": turned, "moved": moved}
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: scores[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: {})
    for revision, count in (("turned", 12), ("moved", 3)):
        means, _ = compare(Path(), ["a", revision], FEW).methods["reversion"]
        assert means.caption == f"Means with intervals over the {count} scenarios that all have"


def test_the_same_images_have_the_same_scores_in_whatever_order_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    table = with_leakage(score_table("inside", "reversion"))
    both = pd.concat([table.assign(seed=seed, scene_accuracy=float(seed)) for seed in (0, 1)], ignore_index=True)
    scores = {"a": both, "b": both[::-1], "swapped": both.assign(seed=1 - both["seed"])}
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: scores[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: {})
    assert compare(Path(), ["a", "b"], FEW).same == ["reversion"]
    assert compare(Path(), ["a", "swapped"], FEW).same == []


def test_of_two_bases_the_entries_in_use_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"bases.small.model.device": "cpu", "bases.small.model.precision": "fp32"}
    values = {
        "a": {"base": "small"} | both,
        "b": {"base": "other", "bases.other.model.device": "cpu", "bases.other.model.precision": "bf16"} | both,
        "c": {"base": "small"} | both | {"bases.small.model.precision": "bf16"},
    }
    monkeypatch.setattr(
        "relinv.report.compare.scores_at", lambda root, revision: with_leakage(score_table("inside", "reversion"))
    )
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: values[revision])
    changed = {"base": ["small", "other"], "bases.${base}.model.precision": ["fp32", "bf16"]}
    assert compare(Path(), ["a", "b"], FEW).parameters == changed
    assert compare(Path(), ["a", "c"], FEW).parameters == {"bases.small.model.precision": ["fp32", "bf16"]}


def test_a_method_is_compared_among_the_revisions_that_ran_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (with_leakage(score_table("inside", name)) for name in ("reversion", "textual_inversion"))
    worse = ours.assign(scene_accuracy=0.0)
    scores = {"my_run": ours, "b": pd.concat([ours, theirs]), "c": pd.concat([theirs, worse[:6]])}
    values = {"my_run": {"seed": 0}, "b": {"seed": 0, "new": 2}, "c": {"seed": 1, "new": 2}}
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: scores[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: values[revision])
    comparison = compare(Path(), list(scores), FEW)
    assert comparison.parameters == {"seed": [0, 0, 1], "new": ["–", 2, 2]}
    assert {
        method: [(table.caption, [line.name for line in table.lines]) for table in tables]
        for method, tables in comparison.methods.items()
    } == {
        "reversion": [
            ("Means with intervals over the 6 scenarios that all have", ["my_run", "b", "c"]),
            (DIFFERENCES["relations"], ["b − my_run", "c − my_run"]),
        ],
        "textual inversion": [
            ("Means with intervals over the 12 scenarios that all have", ["b", "c"]),
            (DIFFERENCES["relations"], ["c − b"]),
        ],
    }
    assert all(name in as_lines(comparison) for name in ("b − my_run", "c − my_run", "c − b"))
    without = {name: rows.assign(direction=float("nan")) for name, rows in scores.items()}
    for name, rows in scores.items():  # defined by scenarios alone that the others lack
        scores[name] = pd.concat([without[name], rows.assign(relation=name, direction=1.0)])
    assert "direction" not in as_lines(compare(Path(), list(scores), FEW))


def test_scores_of_two_judges_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = with_leakage(score_table("inside", "reversion"))
    scores = {"a": rows.assign(judge="one"), "b": rows.assign(judge="two"), "c": rows.assign(judge="one"), "d": rows}
    monkeypatch.setattr("relinv.report.compare.scores_at", lambda root, revision: scores[revision])
    monkeypatch.setattr("relinv.report.compare.params_at", lambda root, revision: {})
    for others, told in (("b", True), ("c", False), ("d", False)):
        comparison = compare(Path(), ["a", others], FEW)
        assert ("2 judges scored: differences may be theirs" in as_lines(comparison)) == told
        assert ("2 judges scored: differences may be theirs" in as_html(comparison)) == told


def test_parameters_of_a_revision_are_those_in_force(repository: Path) -> None:
    both = PARAMS.replace("reversion: {}", "reversion: {long: {steps: 3000}, short: {steps: 9}}\n  other: {long: {}}")
    long = both.replace("preset:\n", "preset: long\n")
    short = long.replace("invert:\n", "invert:\n  preset: short\n")
    try:
        for params, of_presets in (
            (both, {}),
            (long, {"presets.reversion.long.steps": 3000}),
            (short, {"presets.reversion.short.steps": 9}),
        ):
            (repository / "params.yaml").write_text(params)
            found = params_at(repository, "workspace")
            assert {name: value for name, value in found.items() if name.startswith("presets")} == of_presets
        for wrong, told in (
            (long.replace("other: {long: {}}", "other:"), r"'presets\.other' is null in params\.yaml of workspace"),
            ("relations: [", r"params\.yaml of workspace is not valid YAML"),
        ):
            (repository / "params.yaml").write_text(wrong)
            with pytest.raises(UserError, match=told):
                params_at(repository, "workspace")
    finally:
        (repository / "params.yaml").write_text(PARAMS)


def test_leakage_of_another_revision_is_measured_as_today(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [score_table("hug", method) for method in ("relation_words", "reversion")]
    rows = with_leakage(pd.concat(tables, ignore_index=True))
    stored = format_rows(rows.assign(leakage=1.0)).encode()  # by an earlier definition
    monkeypatch.setattr("relinv.report.revisions.read_at", lambda *place: stored)
    measured = scores_at(HERE, "HEAD")["leakage"]
    pd.testing.assert_series_equal(measured, rows["leakage"], atol=2e-6)


def test_missing_revisions_and_scores_are_named(repository: Path) -> None:
    for name in ("", "HEAD^{tree}"):
        with pytest.raises(UserError, match=f"There is no revision '{re.escape(name)}': name a commit"):
            scores_at(repository, name)
    with pytest.raises(UserError, match="There is no revision 'nowhere'"):
        scores_at(repository, "nowhere")
    with pytest.raises(UserError, match=r"'HEAD~1' holds no reports/scores\.csv"):
        scores_at(repository, "HEAD~1")
    with pytest.raises(UserError, match="two revisions at least"):
        compare(repository, ["main", "main"], FEW)


def test_a_comparison_shows_a_parameter_in_every_revision() -> None:
    page = as_html(Comparison(["a", "b"], {"score.skill": [0.5, "<0.75>"]}, {}, 1))
    assert '<th scope="row">score.skill</th><td>0.5</td><td>&lt;0.75&gt;</td></tr>' in page


def test_commands_draw_intervals_as_the_parameters_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = write_run(tmp_path)
    apply_overrides(params.file, ["report.level=0.8", "report.resamples=300", "report.seed=7"])
    own = load_params(params.file)
    expected = Bootstrap(resamples=300, seed=7, level=0.8)
    compared = MagicMock(return_value=Comparison([], {}, {}, 0))
    monkeypatch.setattr("stages.compare.load_params", lambda: own)
    monkeypatch.setattr("relinv.report.compare.compare", compared)
    compare_command(["main", "workspace"])
    assert compared.call_args.args[-1] == expected
    written = MagicMock()
    monkeypatch.setattr("stages.study.load_params", lambda: own)
    monkeypatch.setattr("relinv.study.summary.write_study", written)
    work = ("plan.check_trials", "running.finished", "running.run_pending", "summary.gather", "summary.keep_reports")
    for name in work:
        monkeypatch.setattr(f"relinv.study.{name}", MagicMock())
    study_command([HERE / "plans/study.yaml"])
    assert written.call_args.args[-1] == expected
