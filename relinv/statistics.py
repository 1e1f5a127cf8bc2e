"""Means with bootstrap intervals over score rows, one row per image, clustered by scenario.

The images of one scenario share its prompt, and the scenarios of one relation share its difficulty, so images
are not independent. The cluster bootstrap (Davison & Hinkley, "Bootstrap Methods and their Application",
1997, section 3.8) respects both: it draws relations with replacement and, within each drawn relation,
scenarios with replacement; every image of a drawn scenario is included, whatever its seed. Its interval is about
relations in general. If the question is about these relations only, they are fixed, and either only scenarios are drawn
(how certain is the difference between these trainings?) or only trainings (would others, on other exemplars and noise,
show it again?).
Methods are scored on the same scenarios, so a difference between two of them draws the same clusters for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

CLUSTER = ["relation", "index"]
Resampled = Literal["relations", "scenarios", "trainings"]
TRAINING = ["relation", "trial"]  # of a study's rows: a relation learned under one seed


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: the number of resamples, their seed, and the level, e.g. 0.95 for 95 %.

    drawn: relations, then scenarios of each; or, of each relation once, scenarios or trainings. Of a relation's
        trainings, two at least, one fewer is drawn than there are, since as many of so few would vary too little (Rao &
        Wu, "Resampling inference with complex survey data", JASA 1988).
    """

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95
    drawn: Resampled = "relations"


class Interval(NamedTuple):
    """A mean, or a difference of means, between the two ends of its percentile interval."""

    mean: float
    low: float
    high: float


def mean_interval(rows: pd.DataFrame, metric: str, bootstrap: Bootstrap = Bootstrap()) -> Interval | None:
    """Return the mean of `metric` over the images it is defined for, with its interval; None if there are none."""
    rows = rows.dropna(subset=[metric])
    if rows.empty:
        return None
    mean, resampled = _means(rows, metric, bootstrap, float(rows[metric].iloc[0]))
    return _interval(mean, resampled, bootstrap)


def paired_difference(
    rows: pd.DataFrame, method_a: str, method_b: str, metric: str, bootstrap: Bootstrap = Bootstrap()
) -> Interval | None:
    """Return the mean of `metric` for `method_a` minus that for `method_b`, with its paired interval.

    Only scenarios that have the metric under both methods count; None if there are none.
    """
    rows = rows.dropna(subset=[metric])
    a, b = (rows[rows["method"] == method].set_index(CLUSTER, drop=False) for method in (method_a, method_b))
    shared = a.index.intersection(b.index)
    if shared.empty:
        return None
    a, b = a[a.index.isin(shared)], b[b.index.isin(shared)]
    origin = float(a[metric].iloc[0])  # of both: from two, equal means would differ by rounding, and zero be excluded
    mean_a, resampled_a = _means(a, metric, bootstrap, origin)
    mean_b, resampled_b = _means(b, metric, bootstrap, origin)
    return _interval(mean_a - mean_b, resampled_a - resampled_b, bootstrap)


def _means(rows: pd.DataFrame, metric: str, bootstrap: Bootstrap, origin: float) -> tuple[float, np.ndarray]:
    """Return the mean over `rows` and the mean of each resample, shape (resamples,).

    Values are measured from `origin`, one of them: constant data then gives exactly that value, without rounding noise.
    """
    columns = TRAINING if bootstrap.drawn == "trainings" else CLUSTER
    offsets = (rows[metric].astype(float) - origin).groupby([rows[name].to_numpy() for name in columns])
    sums, counts = offsets.sum(), offsets.size()  # (clusters,), sorted by relation, then index or trial
    sizes = tuple(int(size) for size in counts.groupby(level=0).size())
    weights = resample_weights(sizes, bootstrap)  # (resamples, clusters)
    resampled = (weights @ sums.to_numpy()) / (weights @ counts.to_numpy())
    return origin + float(sums.sum() / counts.sum()), origin + resampled


def _interval(mean: float, resampled: np.ndarray, bootstrap: Bootstrap) -> Interval:
    """Return `mean` between the percentiles of `resampled` that leave out half of 1 - level at each end."""
    tail = (1 - bootstrap.level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


@lru_cache(maxsize=8)
def resample_weights(sizes: tuple[int, ...], bootstrap: Bootstrap) -> np.ndarray:
    """Return how often each cluster is drawn in each resample, shape (resamples, sum of sizes).

    `sizes` holds the number of scenarios (or trainings) of each relation. A relation drawn m times, with n draws from
    its n scenarios each time, has m * n draws in all, so counts are multinomial and need no loop over resamples.
    The same arguments give the same draws, which is what pairs methods.
    """
    generator = np.random.default_rng(bootstrap.seed)
    relations = len(sizes)
    if bootstrap.drawn == "relations":
        times = generator.multinomial(relations, np.full(relations, 1 / relations), size=bootstrap.resamples)
    else:
        times = np.ones((bootstrap.resamples, relations), dtype=int)  # (resamples, relations)
    fewer = int(bootstrap.drawn == "trainings")
    draws = [
        generator.multinomial(times[:, i] * (size - fewer), np.full(size, 1 / size))  # (resamples, size)
        for i, size in enumerate(sizes)
    ]
    return np.concatenate(draws, axis=1).astype(float)
