"""A study's results: one table of rows over arms and seeds, contrasts with intervals, a page, a drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from relinv.files import atomic_write_bytes, atomic_write_text
from relinv.report import charts
from relinv.report.pages import fill
from relinv.report.revisions import read_at, scores_at
from relinv.report.rows import READINGS
from relinv.report.tables import (
    Table,
    by_method,
    difference,
    differences,
    figure,
    label,
    percent,
    scenario_count,
    verdict,
)
from relinv.scoring import as_csv
from relinv.statistics import Bootstrap
from relinv.study.plan import Plan, Trial

COLUMNS = ["arm", "trial", "relation", "method", "index", "held_out"]


def gather(root: Path, plan: Plan, planned: Sequence[Trial], commits: Mapping[str, str]) -> pd.DataFrame:
    """Return the score rows of all trials: arm, trial (its seed), keys, and the plan's metrics."""
    parts = [scores_at(root, commits[trial.name]).assign(arm=trial.arm, trial=trial.seed) for trial in planned]
    return pd.concat(parts, ignore_index=True)[[*COLUMNS, *plan.metrics]]


def write_study(
    folder: Path, name: str, plan: Plan, judges: Sequence[str], rows: pd.DataFrame, bootstrap: Bootstrap
) -> None:
    """Write study.csv (all rows), study.md (tables) and, if there are contrasts, study.svg to `folder`; deterministic.

    name: the plan's file, for a reader who wants to know what was run. judges: what scored.
    A scenario's images under all seeds form one cluster, so that seeds do not count as independent scenarios.
    """
    pooled = rows.assign(method=rows["arm"] + "/" + rows["method"])
    pairs = {contrast.title: (contrast.left, contrast.right) for contrast in plan.contrasts}
    tables = differences(pooled, pairs, plan.metrics, bootstrap)
    atomic_write_text(folder / "study.csv", as_csv(rows))
    if plan.contrasts:
        atomic_write_text(folder / "study.svg", draw(tables[0], plan.metrics))
    page = fill(
        "study.md.jinja",
        plan=name,
        judges=judges,
        seeds=sorted(rows["trial"].unique()),
        relations=rows["relation"].nunique(),
        scenarios=scenario_count(rows),
        level=percent(bootstrap.level),
        verdicts=_verdicts(plan, tables[0], pooled, bootstrap),
        contrasts=tables if plan.contrasts else [],
        best=_best_arms(rows, plan),
        arms=[_arm_table(rows, arm, plan, bootstrap) for arm in rows["arm"].unique()],
    )
    atomic_write_text(folder / "study.md", page)


def keep_reports(root: Path, folder: Path, plan: Plan, planned: Sequence[Trial], commits: Mapping[str, str]) -> None:
    """Write ARM.html, and ARM-RELATION.png for its grids, to `folder` for each arm whose report is kept.

    They come from the experiment of its first seed.
    """
    first = {trial.arm: trial for trial in reversed(planned)}
    for arm, relations in plan.reports.items():
        commit = commits[first[arm].name]
        atomic_write_bytes(folder / f"{arm}.html", read_at(root, commit, "reports/report.html"))
        for relation in relations:
            grid = read_at(root, commit, f"reports/grids/{relation}.png")
            atomic_write_bytes(folder / f"{arm}-{relation}.png", grid)


def draw(table: Table, metrics: Sequence[str]) -> str:
    """Return the contrasts as one SVG document, one panel per metric."""
    panels, headings = [], []
    for place, metric in enumerate(metrics):
        entries = [(line.name, cell) for line in table.lines if (cell := line.cells[place]) is not None]
        if entries:
            panels.append(charts.differences(f"Differences in {READINGS[metric].title}", entries))
            headings.append(f"{READINGS[metric].title}, difference")
    return charts.stack(panels, headings)


def _verdicts(plan: Plan, table: Table, rows: pd.DataFrame, bootstrap: Bootstrap) -> list[str]:
    """Return each contrast's first metric in words, and seed by seed if there are several."""
    metric, told = plan.metrics[0], []
    for contrast, line in zip(plan.contrasts, table.lines, strict=True):
        if (found := line.cells[0]) is None:
            continue
        pair = contrast.left, contrast.right
        words = f"**{contrast.title}.** {verdict(*pair, READINGS[metric].title, found, bootstrap.level)}"
        each = [difference(of_seed, *pair, metric, bootstrap) for _, of_seed in rows.groupby("trial")]
        if len(each) > 1:
            words += f" Seed by seed: {', '.join('–' if one is None else figure(one.mean, True) for one in each)}."
        told.append(words)
    return told


def _best_arms(rows: pd.DataFrame, plan: Plan) -> list[str]:
    """Return in words, for each method whose settings the arms change, the arm with the best first metric.

    Of equal arms, it is the first in the plan. A method of which no arm defines the metric is left out, and all are if
    neither end of it is better.
    """
    reading = READINGS[plan.metrics[0]]
    means = rows.groupby(["method", "arm"], sort=False)[plan.metrics[0]].mean().dropna()
    changed = {part for arm in plan.arms.values() for name in arm for part in name.split(".")}
    told: list[str] = []
    if reading.higher_is_better is None:
        return told
    for method in means.index.unique("method"):
        if method in changed:
            best = means[method].idxmin() if reading.higher_is_better is False else means[method].idxmax()
            told.append(f"{label(method)}: {label(best)}, {reading.title} {means[method][best]:.3f}")
    return told


def _arm_table(rows: pd.DataFrame, arm: str, plan: Plan, bootstrap: Bootstrap) -> Table:
    """Return the means of one arm, captioned with what it changes."""
    chosen = rows[rows["arm"] == arm]
    changes = ", ".join(f"{name} = {value}" for name, value in plan.arms[arm].items() if name != "methods")
    caption = f"{label(arm)} ({changes or 'what all arms have in common'})"
    return by_method(chosen, list(chosen["method"].unique()), plan.metrics, bootstrap, caption)
