"""What the report says, in order, as plain values: both pages, HTML and Markdown, are filled from it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from relinv.params import preset_in_use
from relinv.plugins import plugin_names
from relinv.report import charts
from relinv.report.collect import Run
from relinv.report.rows import READINGS, defined
from relinv.report.sheets import Sheet, build
from relinv.report.tables import (
    HEADLINE,
    Table,
    by_method,
    by_relation,
    difference,
    groups,
    label,
    leads,
    percent,
    relation_table,
    scenario_count,
    verdict,
)
from relinv.scoring import METRICS, load_metric
from relinv.statistics import Bootstrap

RIVAL = "textual_inversion"
CURVE_POINTS = 120  # of a loss curve, so that ten relations stay a small drawing


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption; `svg` is inline SVG."""

    caption: str
    svg: str


@dataclass(frozen=True)
class Story:
    """The report's contents in the order a reader meets them."""

    title: str
    facts: dict[str, Any]  # base, benchmark, relations, methods, images, own, exemplars, level, judge, change
    headline: Table
    verdicts: list[str]
    metrics: Table
    groups: list[Table]
    leads: list[Table]
    relations: Table
    bars: list[Chart]
    sheets: list[Sheet]
    curves: list[Chart]
    judge: dict[str, Any]
    metric_files: list[ModuleType]
    warnings: dict[str, list[str]]
    hashes: list[tuple[str, str]]
    parameters: str


def tell(run: Run) -> Story:
    """Return the story of a run: every table, chart and sheet, computed once for both pages."""
    settings = run.settings
    bootstrap = Bootstrap.of(settings)
    every, metrics = _scope(run), defined(run.rows, READINGS)
    return Story(
        title=f"Relation inversion on {run.parameters['base']}",
        facts=_facts(run),
        headline=by_method(run.rows, run.methods, defined(run.rows, HEADLINE), bootstrap, every),
        verdicts=_verdicts(run, bootstrap),
        metrics=by_method(run.rows, run.methods, metrics, bootstrap, every),
        groups=groups(run.rows, run.benchmark, run.methods, bootstrap),
        leads=leads(run.rows, run.subject, run.methods, metrics, bootstrap),
        relations=relation_table(run.rows, run.relations, run.methods, HEADLINE[0], bootstrap),
        bars=_bars(run, bootstrap),
        sheets=[build(run, relation) for relation in run.relations],
        curves=_curves(run),
        judge=run.judge | _judge_reading(run),
        metric_files=[load_metric(name) for name in defined(run.rows, plugin_names(METRICS))],
        warnings={relation: warnings for relation, warnings in run.warnings.items() if warnings},
        hashes=_hashes(run),
        parameters=as_yaml(run.parameters),
    )


def _scope(run: Run) -> str:
    """Return in words which scenarios the tables cover, and how many images of each if there are several."""
    count, pairs = scenario_count(run.rows), run.parameters["generate"]["pairs"]
    images = len(run.rows) // (len(run.methods) * count)
    drawn = f"All {count:,}" if pairs == "all" else f"The {count:,} {pairs}"
    each = f", {images} images each" if images > 1 else ""
    return f"{drawn} scenarios of {len(run.relations)} relation{'s' if len(run.relations) > 1 else ''}{each}"


def _facts(run: Run) -> dict[str, Any]:
    return {
        "base": run.parameters["base"],
        "benchmark": run.benchmark.name,
        "relations": len(run.relations),
        "methods": [label(method) for method in run.methods],
        "images": len(run.rows),
        "own": [found.words for found in run.benchmark.relations.values() if found.own],
        "exemplars": sum(len(found.exemplars) for found in run.exemplars.values()),
        "level": percent(run.settings.level),
        "judge": run.judge["name"],
        "change": _change(run),
    }


def _judge_reading(run: Run) -> dict[str, Any]:
    """Return in how many exemplars the judge finds the relation they show, and where it misses some."""
    found = run.judged.values()
    missed = {name: of for name, of in run.judged.items() if of.right < of.pictures}
    vqa_right = [of.vqa_right for of in found if of.vqa_right is not None]
    return {
        "pictures": sum(of.pictures for of in found),
        "right": sum(of.right for of in found),
        "by_chance": sum(of.pictures / of.choices for of in found),
        "unread": sum(of.unread for of in found),
        "vqa_right": sum(vqa_right) if len(vqa_right) == len(found) else None,
        "missed": [f"{label(name)} ({of.right} of {of.pictures})" for name, of in missed.items()],
    }


def _change(run: Run) -> str:
    """Return a change of the subject's parameters, as `-S` takes it; ++ sets it whether or not the preset has it."""
    preset = preset_in_use(run.parameters)
    section = f"++presets.{run.subject}.{preset}" if preset else f"invert.{run.subject}"
    settings = run.parameters["invert"][run.subject]  # the plain words have none, an imported token no steps
    if "steer_weight" in settings:
        return f"{section}.steer_weight=0.1"
    return f"{section}.steps=60" if "steps" in settings else "generate.seed=1"


def _verdicts(run: Run, bootstrap: Bootstrap) -> list[str]:
    """Return in words how the subject compares with its rival on each headline metric."""
    subject = run.subject
    if subject == RIVAL or RIVAL not in run.methods:
        return []
    found = {metric: difference(run.rows, subject, RIVAL, metric, bootstrap) for metric in HEADLINE}
    return [
        verdict(label(subject), label(RIVAL), READINGS[metric].title, interval, bootstrap.level)
        for metric, interval in found.items()
        if interval is not None
    ]


def _bars(run: Run, bootstrap: Bootstrap) -> list[Chart]:
    """Return per-relation bars of the three accuracies."""
    names = [label(relation) for relation in run.relations]
    choices = sum(not relation.own for relation in run.benchmark.relations.values())
    chance = {"relation_accuracy": 1 / choices} if choices > 1 else {}
    drawn = []
    for metric in HEADLINE[:3]:
        title = READINGS[metric].title
        series = by_relation(run.rows, run.relations, run.methods, metric, bootstrap)
        drawn.append(Chart(title, charts.bars(f"{title} by relation", names, series, chance.get(metric))))
    return drawn


def _curves(run: Run) -> list[Chart]:
    """Return one chart per method and loss term: a thin line per relation, and a bold one for their mean."""
    drawn = []
    for place, method in enumerate(run.methods):
        tables = {
            relation: run.losses[relation, method] for relation in run.relations if (relation, method) in run.losses
        }
        for term in _terms(list(tables.values())):
            lines = {label(relation): _smooth(losses["step"], losses[term]) for relation, losses in tables.items()}
            lines["mean"] = _mean(list(lines.values()))
            caption = f"{label(method)}: {label(term)}"
            drawn.append(Chart(caption, charts.curves(f"{caption} by step", lines, "mean", place)))
    return drawn


def _terms(tables: list[pd.DataFrame]) -> list[str]:
    """Return the loss terms worth a chart: a total that equals its only term is drawn once."""
    terms = [term for term in tables[0].columns if term != "step"] if tables else []
    if len(terms) == 2 and all(np.allclose(losses[terms[0]], losses[terms[1]]) for losses in tables):
        return terms[:1]
    return terms


def _smooth(steps: pd.Series, values: pd.Series) -> list[tuple[float, float]]:
    """Return a loss curve as points, averaged over a centred window of a fifteenth of its length.

    A single step's loss depends mostly on the luck of its timesteps and noise.
    """
    window = max(1, len(values) // 15)
    smooth = values.rolling(window, center=True, min_periods=1).mean()
    kept = np.unique(np.linspace(0, len(values) - 1, CURVE_POINTS).round().astype(int))
    return [(float(steps.iloc[place]), float(smooth.iloc[place])) for place in kept]


def _mean(lines: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean of curves at the steps of the shortest, interpolating linearly between their points."""
    steps = [step for step, _ in min(lines, key=lambda line: line[-1][0])]
    values = [np.interp(steps, *np.transpose(line)) for line in lines]
    return list(zip(steps, np.mean(values, axis=0).tolist(), strict=True))


def _hashes(run: Run) -> list[tuple[str, str]]:
    """Return which models and exemplar folders were used, by hash, to compare another run with this one."""
    found = {}
    for (relation, _), concept in run.concepts.items():
        found[f"base {concept['base']}"] = concept["base_hash"]
        found[f"exemplars {relation}"] = concept["exemplars_hash"]
    found[f"judge {run.judge['name']}"] = run.judge["fingerprint"]
    return sorted(found.items(), key=lambda item: (item[0].startswith("exemplars"), item[0]))


def as_yaml(values: dict[str, Any]) -> str:
    """Return plain values as block-style YAML text in the order given."""
    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    yaml.dump(values, stream)
    return stream.getvalue()
