"""Revisions and experiments side by side: metrics with intervals, differences on the same scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from relinv.errors import UserError
from relinv.report.pages import fill
from relinv.report.revisions import params_at, scores_at
from relinv.report.rows import READINGS, defined
from relinv.report.tables import Table, as_text, by_method, differences, label, scenario_count
from relinv.scoring import JUDGE
from relinv.statistics import CLUSTER, Bootstrap


@dataclass(frozen=True)
class Comparison:
    """What sets revisions apart: parameters {dotted name: value in each}, and tables by method.

    A method that has the same scores in all of them, on the scenarios they share, has no tables.
    """

    revisions: list[str]
    parameters: dict[str, list[Any]]
    methods: dict[str, list[Table]]
    judges: int  # how many scored; 0 if that is not known

    @property
    def same(self) -> list[str]:
        """Return the methods that have the same scores in all revisions, on the scenarios they share."""
        return [method for method, tables in self.methods.items() if not tables]


def compare(root: Path, revisions: Sequence[str], bootstrap: Bootstrap) -> Comparison:
    """Return the comparison of two or more revisions of the repository at `root`; the first is the reference.

    A method is compared among the revisions that ran it. Raises UserError for fewer than two revisions, for
    an unknown one, and for one without scores.
    """
    revisions = list(dict.fromkeys(revisions))
    if len(revisions) < 2:
        raise UserError("A comparison needs two revisions at least: name commits, branches or experiments.")
    scores = {revision: scores_at(root, revision) for revision in revisions}
    methods = list(dict.fromkeys(method for rows in scores.values() for method in rows["method"]))
    return Comparison(
        revisions,
        _changed([params_at(root, revision) for revision in revisions]),
        {label(method): _tables(scores, method, bootstrap) for method in methods},
        len({judge for rows in scores.values() for judge in rows[JUDGE] if judge}),
    )


def require_html(path: Path) -> None:
    """Raise UserError unless a file's name ends in .html; nothing that a comparison reads has such a name."""
    if path.suffix.lower() != ".html":
        raise UserError(f"The tables in '{path}' would be HTML by another name: let its name end in .html.")


def as_lines(comparison: Comparison) -> str:
    """Return a comparison for a terminal."""
    parts = [f"{name}: {' | '.join(map(str, values))}" for name, values in comparison.parameters.items()]
    if comparison.judges > 1:
        parts.append(f"{comparison.judges} judges scored: differences may be theirs")
    parts.append("*: the best mean of a column; of a difference, that its interval excludes zero")
    if comparison.same:
        parts.append(f"The same on all scenarios they share: {', '.join(comparison.same)}")
    for method, tables in comparison.methods.items():
        if tables:
            parts += ["", f"== {method}", tables[0].caption, "", as_text(tables[:2])]
            for table in tables[2:]:
                parts += ["", table.caption, "", as_text([table])]
    return "\n".join(parts)


def as_html(comparison: Comparison) -> str:
    """Return a comparison as one self-contained HTML document."""
    return fill("compare.html.jinja", comparison=comparison)


def _tables(scores: dict[str, pd.DataFrame], method: str, bootstrap: Bootstrap) -> list[Table]:
    """Return means by revision, over the scenarios that all of them drew, and differences from the first of them.

    If they share no scenario, each revision's means are over its own, as the title says. [] if all of them ran the
    method and its scores are equal.
    """
    ran = {revision: rows[rows["method"] == method] for revision, rows in scores.items()}
    ran = {revision: rows.assign(method=revision) for revision, rows in ran.items() if not rows.empty}
    rows = _by_scene(pd.concat(ran.values()))
    first, *others = ran
    shared = rows.groupby(CLUSTER)["method"].transform("nunique") == len(ran)
    title = "Means with intervals, each over its own scenarios, for none is in all"
    if shared.any():
        rows = rows[shared]
        title = f"Means with intervals over the {scenario_count(rows)} scenarios that all have"
        if len(ran) == len(scores) and _are_same(rows):
            return []
    metrics = defined(rows, READINGS)
    tables = [by_method(rows, list(ran), metrics, bootstrap, title, name=str)]
    if others and shared.any():
        pairs = {f"{other} − {first}": (other, first) for other in others}
        tables += differences(rows, pairs, metrics, bootstrap)
    return tables


def _are_same(rows: pd.DataFrame) -> bool:
    """Return whether all revisions, in the column method, have the same scores on the same images."""
    keys = [*CLUSTER, "seed"]
    first, *others = (
        part[[*keys, *READINGS]].sort_values(keys, ignore_index=True) for _, part in rows.groupby("method")
    )
    return all(part.equals(first) for part in others)


def _by_scene(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows renumbered by scene: another grid may have it at another index, and other entities at that index."""
    return rows.assign(index=rows.groupby(["relation", "head", "tail"]).ngroup())


def _of_the_base_in_use(values: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with the entry of the base in use under the name that dvc.yaml gives it, and no other entry."""
    used = f"bases.{values.get('base')}."
    kept = {name: value for name, value in values.items() if name.startswith(used) or not name.startswith("bases.")}
    return {name.replace(used, "bases.${base}."): value for name, value in kept.items()}


def _changed(parameters: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the parameters whose value differs between revisions, "–" if one has no such parameter."""
    if len({values.get("base") for values in parameters}) > 1:
        parameters = [_of_the_base_in_use(values) for values in parameters]
    names = dict.fromkeys(name for values in parameters for name in values)
    found = {name: [values.get(name, "–") for values in parameters] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}
