"""What a study's page says of its arms."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from relinv.report.pages import INTERVALS
from relinv.report.rows import READINGS, Reading, parse_rows
from relinv.report.tables import DIFFERENCES
from relinv.statistics import Bootstrap
from relinv.study.plan import Contrast, load_plan, trials
from relinv.study.summary import keep_reports, write_study
from tests.reporting import FEW, pretended, score_table


def test_the_report_that_is_kept_is_of_the_first_seed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load_plan(repository / "study.yaml").model_copy(update={"seeds": [3, 1], "reports": {"plain": []}})
    planned = trials(repository, plan)
    assert [(trial.arm, trial.seed) for trial in planned] == list(product(("plain", "better"), (3, 1)))
    monkeypatch.setattr("relinv.study.summary.read_at", lambda root, commit, path: commit.encode())
    keep_reports(repository, tmp_path, plan, planned, {trial.name: f"{trial.arm} {trial.seed}" for trial in planned})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"plain.html": "plain 3"}


def test_seeds_are_pooled_and_the_page_says_what_each_arm_adds(repository: Path, tmp_path: Path) -> None:
    plan = load_plan(repository / "study.yaml")
    parts = []
    for arm, skill, seed in (("plain", 0.6, 0), ("plain", 0.6, 1), ("better", 0.9, 0), ("better", 0.9, 1)):
        params = {"relations": ["inside", "hug"], "methods": ["relation_words", "reversion"], "score": {"skill": skill}}
        scores = parse_rows(pretended(params | {"invert": {"seed": seed}}).encode(), "made up")
        parts.append(scores.assign(arm=arm, trial=seed))
    rows = pd.concat(parts, ignore_index=True)
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], rows, FEW)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "What skill adds" in page and "score.skill = 0.9" in page and "`study.yaml`" in page
    assert "Scored by `ViT-B-32/openai`." in page
    assert "+0.250" in page  # (11 − 8) / 12 of the scenarios
    assert "better/reversion differs from that of plain/reversion by +0.250 (" in page  # of two relations in general
    assert (tmp_path / "study.svg").read_text(encoding="utf-8").count("What skill adds: 0.250 ") == 1  # of four metrics
    assert "0, 1; scenarios: 24, of 2 relations" in page
    plain, better = page.partition("\nplain (what all arms have in common)")[2].split("\nbetter (score.skill = 0.9)")
    assert "| reversion | **0.667** " in plain and "| reversion | **0.917** " in better
    write_study(tmp_path / "half", "study.yaml", plan, ["ViT-B-32/openai"], rows, Bootstrap(resamples=100, level=0.5))
    half = (tmp_path / "half/study.md").read_text(encoding="utf-8")
    wide, narrow = ([line for line in text.splitlines() if line.startswith("| What skill")] for text in (page, half))
    assert all(map(str.__ne__, wide[:2], narrow[:2]))  # what trainings add does not vary here
    assert (tmp_path / "study.svg").read_text(encoding="utf-8").startswith("<svg xmlns=")
    arms = {"plain": {}, "better": {"invert.reversion.skill": 1}, "as_good": {"invert.reversion.skill": 2}}
    search = plan.model_copy(update={"contrasts": [], "arms": arms})
    as_good = rows[rows["arm"] == "better"].assign(arm="as_good")  # of equals the plan's first is named
    write_study(
        tmp_path / "search",
        "search.yaml",
        search,
        ["ViT-B-32/openai"],
        pd.concat([rows, as_good], ignore_index=True),
        FEW,
    )
    found = (tmp_path / "search" / "study.md").read_text(encoding="utf-8")
    assert "- reversion: better, " in found and "- relation words" not in found
    before = {path.name: path.read_bytes() for path in tmp_path.glob("study.*")}
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], rows, FEW)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("study.*")}


def test_contrasts_are_told_though_the_first_metric_is_undefined(repository: Path, tmp_path: Path) -> None:
    plan = load_plan(repository / "study.yaml").model_copy(update={"metrics": ["direction", "scene_accuracy"]})
    tables = [score_table("hug", "reversion").assign(arm=arm, trial=0) for arm in ("plain", "better")]
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], pd.concat(tables, ignore_index=True), FEW)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "| What skill adds | – | " in page and "study.svg" in page and "best arm" not in page
    search = plan.model_copy(update={"contrasts": []})  # whose arms change nothing of a method
    write_study(tmp_path, "study.yaml", search, ["ViT-B-32/openai"], pd.concat(tables, ignore_index=True), FEW)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "What skill adds" not in page and "best arm" not in page and "## Arm by arm" in page


def test_a_lead_in_one_relation_of_two_is_sure_for_these_two_alone(repository: Path, tmp_path: Path) -> None:
    contrast = {"title": "What skill adds", "left": "better/reversion", "right": "plain/reversion"}
    plan = load_plan(repository / "study.yaml").model_copy(update={"contrasts": [Contrast(**contrast)]})
    rows = pd.DataFrame(
        [
            {"arm": arm, "trial": 0, "relation": relation, "method": "reversion", "index": index, "held_out": False}
            | dict.fromkeys(["scene_accuracy", "relation_accuracy", "entity_accuracy"], float(right))
            | {"leakage": 0.0}
            for relation in ("inside", "hug")
            for arm, right in (("plain", relation == "hug"), ("better", True))
            for index in range(10)
        ]
    )
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], rows, FEW)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    large, these = page.partition(DIFFERENCES["scenarios"])[::2]
    assert "| What skill adds | +0.500 (−1.000 … +1.000) |" in large
    assert "| What skill adds | **+0.500** (+0.500 … +0.500) |" in these
    assert "the two apart" in large and 'class="s2"' not in (tmp_path / "study.svg").read_text()  # in general
    assert INTERVALS in page  # how far to trust intervals over so few relations
    assert "One seed cannot say" in page and DIFFERENCES["trainings"] not in page and "Seed by seed" not in page


def test_a_lead_in_one_training_of_two_is_sure_for_these_trainings_alone(repository: Path, tmp_path: Path) -> None:
    contrast = {"title": "What|skill adds", "left": "better/reversion", "right": "plain/reversion"}
    plan = load_plan(repository / "study.yaml").model_copy(update={"contrasts": [Contrast(**contrast)]})
    rows = pd.DataFrame(
        [
            {"arm": arm, "trial": trial, "relation": relation, "method": "reversion", "index": index, "held_out": False}
            | dict.fromkeys(["scene_accuracy", "relation_accuracy", "entity_accuracy"], float(right))
            | {"leakage": 0.0}
            for relation in ("inside", "hug")
            for trial in (1, 0)  # as the plan may have them
            for arm, right in (("plain", trial == 0), ("better", True))
            for index in range(10)
        ]
    )
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], rows, FEW)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    these, others = page.partition(DIFFERENCES["trainings"])[::2]
    assert "Other trainings have" in these and these.count("| What\\|skill adds | **+0.500** (+0.500 … +0.500) |") == 2
    assert "| What\\|skill adds | +0.500 (−0.598 … +1.000) |" in others  # else it would be two cells
    assert "excludes zero). Seed by seed: +0.000, +1.000.\n" in page
    assert "0, 1; scenarios: 20, of 2 relations" in page  # in the same order
    assert len(pd.read_csv(tmp_path / "study.csv")) == len(rows)


@pytest.mark.parametrize("higher", [False, None])
def test_a_search_names_no_best_by_a_metric_that_a_method_lacks_or_that_has_no_better_end(
    higher: bool | None, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(READINGS, "leakage", Reading("leakage", higher))
    arms = {"a": {"invert.reversion.skill": 1}, "b": {"presets.dreambooth.long.skill": 1}}
    changes = {"arms": arms, "contrasts": [], "metrics": ["leakage"]}
    plan = load_plan(repository / "study.yaml").model_copy(update=changes)
    tables = [score_table("hug", method).assign(arm=arm) for method in ("reversion", "dreambooth") for arm in arms]
    rows = pd.concat(tables, ignore_index=True).assign(trial=0, leakage=0.25)
    rows.loc[rows["arm"] == "b", "leakage"] = 0.125  # the lower, the better
    rows.loc[rows["method"] == "reversion", "leakage"] = float("nan")
    write_study(tmp_path, "study.yaml", plan, ["ViT-B-32/openai"], rows, FEW)
    best = (tmp_path / "study.md").read_text(encoding="utf-8").partition("best arm")[2].partition("## Arm")[0]
    assert ("- dreambooth: b, leakage 0.125" in best) == (higher is False) and "reversion" not in best


def test_a_study_tells_the_level_of_its_intervals_wherever_it_tells_one(repository: Path, tmp_path: Path) -> None:
    plan = load_plan(repository / "study.yaml")
    plan = plan.model_copy(update={"contrasts": plan.contrasts[:1]})
    tables = [score_table("hug", "reversion").assign(arm=arm, trial=0, leakage=0.0) for arm in ("plain", "better")]
    rows = pd.concat(tables, ignore_index=True)
    write_study(tmp_path, "study.yaml", plan, ["a judge"], rows, Bootstrap(resamples=100, level=0.5))
    page, percent = (tmp_path / "study.md").read_text(encoding="utf-8"), "\N{NO-BREAK SPACE}%"
    assert f"The 50{percent} intervals are" in page and f"(50{percent} interval" in page and f"95{percent}" not in page
