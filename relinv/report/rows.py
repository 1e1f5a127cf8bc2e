"""Score rows, one per image, as `score` wrote them for each arm and `report` joins them in one file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from relinv.errors import UserError
from relinv.exemplars import ExemplarSet
from relinv.plugins import plugin_names
from relinv.scoring import JUDGE, KEYS, METRICS, as_csv, load_metric

REMEDY = "delete them and run `dvc repro`"
BASELINE = "relation_words"  # plain text-to-image: what leakage is measured against


@dataclass(frozen=True)
class Reading:
    """A metric of the report: what to call it, and which way is better."""

    title: str
    higher_is_better: bool | None  # None: neither end is better


STANDARD = ["scene_accuracy", "relation_accuracy", "entity_accuracy", "relation_score", "relation_margin", "entity",
            "direction"]  # fmt: skip  # the benchmark's metrics, the headline's first
REQUIRED = [*STANDARD, "exemplar_similarity"]  # columns that every score file has
FURTHER = [name for name in plugin_names(METRICS) if name not in REQUIRED]  # files added to relinv/metrics


def _reading(name: str) -> Reading:
    metric = load_metric(name)
    title = metric.TITLE if metric.TITLE[:2].isupper() else metric.TITLE.lower()  # VQAScore keeps its capitals
    return Reading(title, metric.HIGHER_IS_BETTER)


BOUNDS = {name: load_metric(name).BOUNDS for name in [*REQUIRED, *FURTHER]}
READINGS = {name: _reading(name) for name in [*STANDARD, *FURTHER]}
READINGS["leakage"] = Reading("leakage", higher_is_better=None)  # 0 is none; below may mean drawn worse
BOUNDS["leakage"] = (-2.0, 2.0)  # a difference of cosines


def read_arms(folder: Path, relations: Sequence[str], methods: Sequence[str]) -> pd.DataFrame:
    """Return the rows of the given relations and methods below a score folder, in that order, with leakage.

    Only the named arms are read: folders may still hold arms of earlier runs. Raises UserError if an arm's rows
    are missing, damaged or another arm's, or are of other scenarios or seeds than another method's.
    """
    arms = []
    for relation in relations:
        for method in methods:
            path = Path(folder) / relation / f"{method}.csv"
            if not path.is_file():
                raise UserError(f"The scores '{path}' do not exist: run `dvc repro` to make them.")
            arm = parse_rows(path.read_bytes(), str(path))
            if {*arm["relation"]} != {relation} or {*arm["method"]} != {method}:
                raise UserError(f"The scores '{path}' are another relation's or method's: {REMEDY}.")
            arms.append(arm)
    rows = pd.concat(arms, ignore_index=True)
    for relation, drawn in rows.groupby("relation", sort=False):
        if len({frozenset(zip(one["index"], one["seed"], strict=True)) for _, one in drawn.groupby("method")}) > 1:
            raise UserError(
                f"The methods' scores of '{relation}' in '{folder}' are of other scenarios or seeds: run `dvc repro`."
            )
    return with_leakage(rows)


def parse_rows(content: bytes, where: str) -> pd.DataFrame:
    """Return the rows in the `content` of a CSV file, NaN for a blank metric.

    Raises UserError, which calls the file `where`, if it is damaged.
    """
    names, metrics = ["relation", "method", "head", "tail", "file", JUDGE], [*REQUIRED, *FURTHER, "leakage"]
    try:
        rows = pd.read_csv(
            io.BytesIO(content),
            dtype=dict.fromkeys(names, str) | dict.fromkeys(["index", "seed"], int) | dict.fromkeys(metrics, float),
            keep_default_na=False,
            na_values={column: [""] for column in [*metrics, "held_out"]},
        )
    except ValueError as error:
        raise UserError(f"The scores '{where}' are damaged ({error}): {REMEDY}.") from None
    if fault := "end within a row" if not content.endswith(b"\n") else _fault(rows):
        raise UserError(f"The scores '{where}' {fault}: {REMEDY}.")
    # A metric added since these rows were written is undefined for them; older ones lack the judge's column too.
    later = dict.fromkeys(FURTHER, float("nan")) | {JUDGE: ""}
    return rows.assign(**{column: value for column, value in later.items() if column not in rows.columns})


def _fault(rows: pd.DataFrame) -> str:
    """Return what is wrong with the rows of a file, "" if nothing is."""
    missing = [column for column in KEYS + REQUIRED if column not in rows.columns]
    if missing:
        return f"lack the column '{missing[0]}'"
    if rows.empty:
        return "hold no row"
    if (twice := rows.duplicated(["relation", "method", "index", "seed"])).any():
        return f"hold a row twice, that of {rows.loc[twice, 'file'].iloc[0]}"
    for name, (lowest, highest) in BOUNDS.items():
        values = rows.get(name, pd.Series(dtype=float)).dropna()
        if not values.between(lowest, highest).all():
            return f"hold a value of '{name}' that is not between {lowest:g} and {highest:g}"
    return ""


def with_leakage(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `rows` with `leakage`: exemplar similarity minus the baseline's on the same scenario and seed.

    Exemplars show the relation, so a picture that lacks it is less like them, whatever else was copied: leakage is NaN
    where the judge finds another relation in either picture. It is NaN for the baseline itself, too.
    """
    place = ["relation", "index", "seed"]
    baseline = rows.loc[rows["method"] == BASELINE, [*place, "exemplar_similarity", "relation_accuracy"]]
    of_baseline = rows[place].merge(baseline, on=place, how="left", validate="many_to_one").set_index(rows.index)
    other_relation = (rows["relation_accuracy"] == 0) | (of_baseline["relation_accuracy"] == 0)
    leakage = rows["exemplar_similarity"] - of_baseline["exemplar_similarity"]
    return rows.assign(leakage=leakage.mask(other_relation | (rows["method"] == BASELINE)))


def with_exemplar_pairs(rows: pd.DataFrame, sets: Mapping[str, ExemplarSet]) -> pd.DataFrame:
    """Return `rows` with `exemplar_pair`: whether an exemplar of the relation shows the row's pair, in either order."""
    pairs = rows[["relation", "head", "tail"]].drop_duplicates()
    marks = [shows(sets[relation], head, tail) for relation, head, tail in pairs.itertuples(index=False)]
    return rows.merge(pairs.assign(exemplar_pair=marks), how="left", validate="many_to_one")


def shows(exemplars: ExemplarSet, head: str, tail: str) -> bool:
    """Return whether a caption names one of the two before the relation and the other after it."""
    if not (head and tail):
        return False
    first, second = (rf"(?<!\w){re.escape(name)}(?!\w)" for name in (head, tail))
    either = re.compile(rf"{first}.*{{}}.*{second}|{second}.*{{}}.*{first}", re.IGNORECASE)
    return any(either.search(template) for exemplar in exemplars.exemplars for template in exemplar.templates)


def format_rows(rows: pd.DataFrame) -> str:
    """Return `rows` as CSV text: keys, metrics, leakage, judge."""
    last = ["leakage", JUDGE]
    columns = KEYS + [column for column in rows.columns if column not in [*KEYS, *last]] + last
    return as_csv(rows[columns])


def means(rows: pd.DataFrame, methods: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Return {method: {metric: mean over the images it is defined for, or None if there are none}}."""
    groups = {method: rows[rows["method"] == method] for method in methods}
    return {method: {name: _mean(group[name]) for name in READINGS} for method, group in groups.items()}


def defined(rows: pd.DataFrame, metrics: Iterable[str]) -> list[str]:
    """Return those of `metrics` that have a value in at least one of the rows, in their order."""
    return [name for name in metrics if rows[name].notna().any()]


def _mean(values: pd.Series) -> float | None:
    mean = values.mean()
    return None if pd.isna(mean) else round(float(mean), 6)
