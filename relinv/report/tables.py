"""The report's tables: methods by metrics with intervals, groups of triplets, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from relinv.benchmark import Benchmark
from relinv.report.rows import BOUNDS, READINGS, defined
from relinv.statistics import CLUSTER, Bootstrap, Interval, Resampled, mean_interval, paired_difference

HEADLINE = ("scene_accuracy", "relation_accuracy", "entity_accuracy", "leakage")
DIFFERENCES: dict[Resampled, str] = {
    "relations": "Paired differences on the same scenarios",
    "scenarios": "The same, with intervals for these relations only, as they were trained",
    "trainings": "The same, with intervals for these relations and scenarios, trained again",
}


@dataclass(frozen=True)
class Line:
    """A line of a table: its name, its cells (None where undefined), and which of them are set in bold."""

    name: str
    cells: list[Interval | None]
    bold: list[bool]


@dataclass(frozen=True)
class Table:
    """A table of intervals: one heading per column, and its lines; `signed` if they are differences."""

    caption: str
    headings: list[str]
    lines: list[Line]
    signed: bool = False


def figure(value: float, signed: bool = False, decimals: int = 3) -> str:
    """Return a figure with a true minus sign; if `signed`, a plus sign too, and one on zero."""
    return f"{value:{'+' if signed else 'z'}.{decimals}f}".replace("-", "−")


def percent(share: float) -> str:
    """Return a share (0 to 1) in percent, with the figure and its sign kept on one line."""
    return f"{100 * share:g}\N{NO-BREAK SPACE}%"


def label(method: str) -> str:
    """Return a method's or relation's name as words."""
    return method.replace("_", " ")


def by_method(
    rows: pd.DataFrame,
    methods: Sequence[str],
    metrics: Sequence[str],
    bootstrap: Bootstrap,
    caption: str,
    name: Callable[[str], str] = label,
) -> Table:
    """Return the mean and interval of each metric for each method, the best means of a column marked.

    `name` turns a value of the rows' method column into the words of its line.
    """
    columns = [[interval(rows, method, metric, bootstrap) for method in methods] for metric in metrics]
    best = [_best(column, READINGS[metric].higher_is_better) for column, metric in zip(columns, metrics, strict=True)]
    lines = [
        Line(name(method), [column[row] for column in columns], [places[row] for places in best])
        for row, method in enumerate(methods)
    ]
    return Table(caption, [heading(metric) for metric in metrics], lines)


def by_relation(
    rows: pd.DataFrame, relations: Sequence[str], methods: Sequence[str], metric: str, bootstrap: Bootstrap
) -> dict[str, list[Interval | None]]:
    """Return {method: its interval of `metric` on each relation}, for bars."""
    groups = [rows[rows["relation"] == relation] for relation in relations]
    return {label(method): [interval(group, method, metric, bootstrap) for group in groups] for method in methods}


def between(
    rows: pd.DataFrame,
    pairs: Mapping[str, tuple[str, str]],
    metrics: Sequence[str],
    bootstrap: Bootstrap,
    caption: str,
) -> Table:
    """Return one line per named pair (a, b) of methods: paired a − b, bold if its interval excludes zero."""
    lines = []
    for name, (method, other) in pairs.items():
        cells = [difference(rows, method, other, metric, bootstrap) for metric in metrics]
        lines.append(Line(name, cells, [found is not None and found.excludes_zero for found in cells]))
    return Table(caption, [heading(metric) for metric in metrics], lines, signed=True)


def differences(
    rows: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], metrics: Sequence[str], bootstrap: Bootstrap
) -> list[Table]:
    """Return the table of `between`, and the same for narrower questions than about relations in general.

    The second is about these relations only, if there are several; the third, of a study's rows over several seeds,
    about these relations trained again.
    """
    asked: list[Resampled] = ["relations"]
    if rows["relation"].nunique() > 1:
        asked.append("scenarios")
    if "trial" in rows and rows["trial"].nunique() > 1:
        asked.append("trainings")
    return [between(rows, pairs, metrics, replace(bootstrap, drawn=drawn), DIFFERENCES[drawn]) for drawn in asked]


def relation_table(
    rows: pd.DataFrame, relations: Sequence[str], methods: Sequence[str], metric: str, bootstrap: Bootstrap
) -> Table:
    """Return the intervals of `by_relation` as a table, one line per relation, the best methods of each marked."""
    columns = by_relation(rows, relations, methods, metric, bootstrap)
    lines = []
    for row, relation in enumerate(relations):
        cells = [column[row] for column in columns.values()]
        lines.append(Line(label(relation), cells, _best(cells, READINGS[metric].higher_is_better)))
    return Table(heading(metric), list(columns), lines)


def groups(rows: pd.DataFrame, benchmark: Benchmark, methods: Sequence[str], bootstrap: Bootstrap) -> list[Table]:
    """Return tables of the headline's metrics for some kinds of scenarios.

    Triplets held out of the base's training, and those seen in it; pairs that no exemplar shows; test scenarios, by
    which no setting may be chosen. A kind with none or all of the scenarios gets no table: a published base's
    training set, for example, is unknown.
    """
    tests = {(name, s.index) for name in set(rows["relation"]) for s in benchmark.scenarios(name, "test")}
    kinds = {
        "Triplets held out of the base’s training": rows["held_out"].isin([True]),
        "Triplets seen in the base’s training": rows["held_out"].isin([False]),
        "Pairs that no exemplar shows": ~rows["exemplar_pair"],
        "Scenarios by which no setting was chosen": rows[CLUSTER].apply(tuple, axis=1).isin(tests),
    }
    metrics = defined(rows, HEADLINE)
    return [
        by_method(rows[kind], methods, metrics, bootstrap, f"{words}: {scenario_count(rows[kind])} scenarios")
        for words, kind in kinds.items()
        if kind.any() and not kind.all()
    ]


def leads(
    rows: pd.DataFrame, subject: str, methods: Sequence[str], metrics: Sequence[str], bootstrap: Bootstrap
) -> list[Table]:
    """Return the tables of the subject minus each other method; none if no other method ran."""
    pairs = {f"{label(subject)} − {label(other)}": (subject, other) for other in methods if other != subject}
    return differences(rows, pairs, metrics, bootstrap) if pairs else []


def interval(rows: pd.DataFrame, method: str, metric: str, bootstrap: Bootstrap) -> Interval | None:
    """Return the mean and interval of a metric for a method, None if no row defines it."""
    found = mean_interval(rows[rows["method"] == method], metric, bootstrap)
    return found and found.within(*BOUNDS[metric])


def difference(rows: pd.DataFrame, method: str, other: str, metric: str, bootstrap: Bootstrap) -> Interval | None:
    """Return the paired difference of a metric between two methods and its interval, None if no scenario has both."""
    found = paired_difference(rows, method, other, metric, bootstrap)
    lowest, highest = BOUNDS[metric]
    return found and found.within(lowest - highest, highest - lowest)


def verdict(name: str, other: str, what: str, found: Interval, level: float) -> str:
    """Return a paired difference in words, saying plainly when it cannot be told from zero."""
    # else what is not zero would look so
    decimals = 6 if found.excludes_zero and min(map(abs, found)) < 0.0005 else 3
    low, high = (figure(end, True, decimals) for end in (found.low, found.high))
    span = f"{percent(level)} interval {low} to {high}"
    if not found.excludes_zero:
        return (
            f"The {what} of {name} differs from that of {other} by {figure(found.mean, True)} ({span}). "
            "The interval includes zero: this run cannot tell the two apart."
        )
    way = "higher" if found.mean > 0 else "lower"
    return (
        f"The {what} of {name} is {figure(abs(found.mean), decimals=decimals)} {way} than that of {other} ({span}; "
        "the interval excludes zero)."
    )


def scenario_count(rows: pd.DataFrame) -> int:
    """Return how many scenarios the rows are of, whatever the methods and seeds."""
    return len(rows[CLUSTER].drop_duplicates())


def heading(metric: str) -> str:
    """Return a metric's column heading, with an arrow towards better if one end is."""
    reading = READINGS[metric]
    return reading.title + {True: "\u00a0↑", False: "\u00a0↓", None: ""}[reading.higher_is_better]


def as_text(tables: Sequence[Table]) -> str:
    """Return tables with the same headings for a terminal, side by side: a row for each heading.

    A column is a line of a table, with `*` where the page has bold.
    """
    grid = [["", *(line.name for table in tables for line in table.lines)]]
    for place, heading in enumerate(tables[0].headings):
        grid.append([heading, *(_cell_text(line, place, table.signed) for table in tables for line in table.lines)])
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in grid)


def _cell_text(line: Line, place: int, signed: bool) -> str:
    found, mark = line.cells[place], "*" if line.bold[place] else " "
    if found is None:
        return "–"
    return f"{figure(found.mean, signed)}{mark} ({figure(found.low, signed)}…{figure(found.high, signed)})"


def _best(column: Sequence[Interval | None], higher: bool | None) -> list[bool]:
    """Return which means of a column are best, ties included; none if there are fewer than two or no end is better."""
    means = [found.mean for found in column if found is not None]
    if len(means) < 2 or higher is None:
        return [False] * len(column)
    best = max(means) if higher else min(means)
    return [found is not None and math.isclose(found.mean, best, abs_tol=1e-12) for found in column]
