"""Means with bootstrap intervals over score rows, one row per image, clustered by scenario.

The images of one scenario share its prompt, and the scenarios of one relation share its difficulty, so images
are not independent. The cluster bootstrap (Davison & Hinkley, "Bootstrap Methods and their Application",
1997, section 3.8) respects both: it draws relations with replacement and, within each drawn relation,
scenarios with replacement; every image of a drawn scenario is included, whatever its seed. Its interval is about
relations in general. If the question is about these relations only, they are fixed, and either only scenarios are drawn
(how certain is the difference between these trainings?) or only trainings (would others, on other exemplars and noise,
show it again?).

Resamples of few things vary too little, and their percentiles, like a normal distribution's, allow too little for not
knowing how much those things vary (Hesterberg, "What Teachers Should Know About the Bootstrap", The American
Statistician 2015, section 4). So one fewer is drawn than there are (Rao & Wu, "Resampling inference with complex survey
data", JASA 1988), and an interval's ends are moved away from the mean by the ratio of Student's quantile to the normal
one. Relations drawn anew vary by their scenarios' noise already, and drawing scenarios adds it once more: where it is
large, intervals about relations in general are wider than they need be.

Methods are scored on the same scenarios, so a difference between two of them draws the same clusters for both.
Trainings count as independent, though those under one seed draw the same timesteps and noise for different pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from relinv.settings import ReportSettings

CLUSTER = ["relation", "index"]
Resampled = Literal["relations", "scenarios", "trainings"]
TRAINING = ["relation", "trial"]  # of a study's rows: a relation learned under one seed


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: the number of resamples, their seed, and the level, e.g. 0.95 for 95 %.

    drawn: relations, then scenarios of each (of a single relation, scenarios only); or, of each relation once,
        scenarios or trainings.
    """

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95
    drawn: Resampled = "relations"

    @classmethod
    def of(cls, settings: ReportSettings) -> Bootstrap:
        """Return how a report's intervals are drawn."""
        return cls(settings.resamples, settings.seed, settings.level)


class Interval(NamedTuple):
    """A mean, or a difference of means, between the two ends of its interval."""

    mean: float
    low: float
    high: float

    def within(self, lowest: float, highest: float) -> Interval:
        """Return the interval clipped to the possible range."""
        return self._replace(low=max(self.low, lowest), high=min(self.high, highest))

    @property
    def excludes_zero(self) -> bool:
        """Return whether zero lies outside the interval."""
        return not self.low <= 0 <= self.high


def mean_interval(rows: pd.DataFrame, metric: str, bootstrap: Bootstrap = Bootstrap()) -> Interval | None:
    """Return the mean of `metric` over the images it is defined for, with its interval; None if there are none."""
    rows = rows.dropna(subset=[metric])
    if rows.empty:
        return None
    return _interval(_means(rows, metric, bootstrap, float(rows[metric].iloc[0])), bootstrap)


def paired_difference(
    rows: pd.DataFrame, method_a: str, method_b: str, metric: str, bootstrap: Bootstrap = Bootstrap()
) -> Interval | None:
    """Return the mean of `metric` for `method_a` minus that for `method_b`, with its paired interval.

    Only images that have the metric under both methods count, those of a scenario (of a study's rows, under each seed)
    paired in their order; None if there are none.
    """
    pair = [*CLUSTER, "trial"] if "trial" in rows else CLUSTER
    rows = rows.loc[rows["method"].isin([method_a, method_b]), ["method", *pair, metric]]
    rows = rows.assign(image=rows.groupby(["method", *pair]).cumcount()).dropna(subset=[metric])
    pair = [*pair, "image"]
    a, b = (rows[rows["method"] == method].set_index(pair, drop=False) for method in (method_a, method_b))
    shared = a.index.intersection(b.index)
    if shared.empty:
        return None
    a, b = a[a.index.isin(shared)], b[b.index.isin(shared)]
    origin = float(a[metric].iloc[0])  # of both: from two, equal means would differ by rounding, and zero be excluded
    ours, theirs = (_means(rows, metric, bootstrap, origin) for rows in (a, b))
    return _interval(_Means(ours.of_all - theirs.of_all, ours.resampled - theirs.resampled, ours.freedom), bootstrap)


class _Means(NamedTuple):
    """A metric's mean over all rows, and over each resample of them."""

    of_all: float
    resampled: np.ndarray  # (resamples,)
    freedom: int  # degrees of freedom of the Student's quantile by which the interval is widened


def _means(rows: pd.DataFrame, metric: str, bootstrap: Bootstrap, origin: float) -> _Means:
    """Return the mean over `rows` and those of its resamples.

    Values are measured from `origin`, one of them: constant data then gives exactly that value, without rounding noise.
    """
    columns = TRAINING if bootstrap.drawn == "trainings" else CLUSTER
    (relations, _), (members, values) = (pd.factorize(rows[name], sort=True) for name in columns)  # (rows,) each
    # in NumPy, which takes a tenth of the time of groupby; clusters are sorted by relation, then index or trial
    clusters, places, counts = np.unique(relations * len(values) + members, return_inverse=True, return_counts=True)
    sums = np.bincount(places, rows[metric].to_numpy(float) - origin)  # (clusters,)
    sizes = tuple(np.bincount(clusters // len(values)).tolist())  # of each relation
    weights = resample_weights(sizes, bootstrap)  # (resamples, clusters)
    resampled = (weights @ sums) / (weights @ counts)
    freedom = len(sizes) - 1 if _draws_relations(sizes, bootstrap) else len(sums) - len(sizes)
    return _Means(origin + float(sums.sum() / counts.sum()), origin + resampled, freedom)


def _interval(means: _Means, bootstrap: Bootstrap) -> Interval:
    """Return the mean between the percentiles that leave out half of 1 - level at each end, moved as Student's are.

    Without a degree of freedom, as of a single scenario, nothing tells how much others vary: the ends are infinite.
    """
    if means.freedom == 0:
        return Interval(means.of_all, -np.inf, np.inf)
    tail = (1 - bootstrap.level) / 2
    low, high = np.quantile(means.resampled, [tail, 1 - tail]) - means.of_all
    wider = stdtrit(means.freedom, tail) / ndtri(tail)
    return Interval(means.of_all, float(means.of_all + wider * low), float(means.of_all + wider * high))


def _draws_relations(sizes: tuple[int, ...], bootstrap: Bootstrap) -> bool:
    """Return whether relations are drawn: a single one cannot be."""
    return bootstrap.drawn == "relations" and len(sizes) > 1


@lru_cache(maxsize=2)
def resample_weights(sizes: tuple[int, ...], bootstrap: Bootstrap) -> np.ndarray:
    """Return how much each cluster weighs in each resample, shape (resamples, sum of sizes).

    `sizes` holds the number of scenarios (or trainings) of each relation. A relation drawn m times, with n draws from
    its n scenarios each time, has m * n draws in all, so counts are multinomial and need no loop over resamples. A
    relation that is not drawn weighs as much as it has clusters, though one fewer is drawn.
    The same arguments give the same draws, which is what pairs methods.
    """
    generator = np.random.default_rng(bootstrap.seed)
    relations, drawn = len(sizes), _draws_relations(sizes, bootstrap)
    times = np.ones((bootstrap.resamples, relations), dtype=int)  # (resamples, relations)
    if drawn:
        times = generator.multinomial(relations - 1, np.full(relations, 1 / relations), size=bootstrap.resamples)
    parts = []
    for i, size in enumerate(sizes):
        draws = size if drawn else max(size - 1, 1)
        counts = generator.multinomial(times[:, i] * draws, np.full(size, 1 / size))  # (resamples, size)
        parts.append(counts * (size / draws))
    return np.concatenate(parts, axis=1)
