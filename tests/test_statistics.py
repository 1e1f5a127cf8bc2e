"""Cluster bootstrap: closed-form values, pairing, coverage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from relinv.report.pages import INTERVALS
from relinv.settings import ReportSettings
from relinv.statistics import Bootstrap, Interval, Resampled, mean_interval, paired_difference, resample_weights

QUICK = Bootstrap(resamples=400)


def rows_of(values: np.ndarray, method: str = "a", metric: str = "score") -> pd.DataFrame:
    """Return score rows for `values` (relations, scenarios, seeds)."""
    relations, scenarios, seeds = values.shape
    place = np.indices(values.shape).reshape(3, relations * scenarios * seeds)
    return pd.DataFrame(
        {
            "method": method,
            "relation": [f"relation_{i}" for i in place[0]],
            "index": place[1],
            "seed": place[2],
            metric: values.ravel(),
        }
    )


def clustered(generator: np.random.Generator, relations: int, scenarios: int, seeds: int) -> np.ndarray:
    """Return values of mean 0 with effects of relation, scenario and seed, (relations, scenarios, seeds)."""
    return (
        generator.normal(0, 1, (relations, 1, 1))
        + generator.normal(0, 1, (relations, scenarios, 1))
        + generator.normal(0, 1, (relations, scenarios, seeds))
    )


def test_intervals_are_drawn_as_the_reports_section_says() -> None:
    settings = ReportSettings(subject="reversion", resamples=300, seed=7, level=0.8)
    assert Bootstrap.of(settings) == Bootstrap(resamples=300, seed=7, level=0.8, drawn="relations")


def test_mean_is_over_images() -> None:
    values = np.array([[[1.0], [2.0]], [[3.0], [6.0]]])
    assert mean_interval(rows_of(values), "score").mean == 3.0


def test_images_weigh_alike_however_many_a_scenario_has() -> None:
    rows = rows_of(np.array([[[1.0, 1.0, 1.0], [5.0, np.nan, np.nan], [5.0, np.nan, np.nan]]]))
    mean, low, high = mean_interval(rows, "score", Bootstrap(400, level=0.5))  # two scenarios are drawn
    wider = 0.8165 / 0.6745  # Student's quantile for 2 degrees of freedom, over the normal one
    assert mean == 13 / 5
    assert low == pytest.approx(mean + wider * (2 - mean), rel=1e-3)  # (3 * 1 + 5) / 4 images
    assert high == pytest.approx(mean + wider * (5 - mean), rel=1e-3)


@pytest.mark.parametrize("constant", [0.1, 0.0, -7.3])
def test_constant_data_gives_a_zero_width_interval(constant: float) -> None:
    values = np.full((3, 10, 2), constant)
    assert mean_interval(rows_of(values), "score", QUICK) == (constant, constant, constant)


def test_an_interval_that_ends_at_zero_does_not_exclude_it() -> None:
    held = [Interval(0.0, 0.0, 0.0), Interval(0.1, 0.0, 0.2), Interval(-0.1, -0.2, 0.0), Interval(0.0, -0.1, 0.1)]
    assert not any(interval.excludes_zero for interval in held)
    assert Interval(0.1, 0.05, 0.2).excludes_zero and Interval(-0.1, -0.2, -0.05).excludes_zero


def test_weights_draw_one_relation_fewer_than_there_are() -> None:
    weights = resample_weights((4, 4, 4), Bootstrap(50))
    assert weights.shape == (50, 12)
    assert (weights.sum(axis=1) == 8).all()
    assert (weights.reshape(50, 3, 4).sum(axis=2) % 4 == 0).all()  # a relation comes whole, m times its scenarios


def test_weights_have_the_variance_of_the_two_step_draw() -> None:
    # Constant within relations: Var(mean) = var(relation means) / (R - 1). Two relations at 0 and 1: 1/4 / 1.
    values = np.repeat([0.0, 1.0], 50)
    weights = resample_weights((50, 50), Bootstrap(20_000))
    means = weights @ values / weights.sum(axis=1)
    assert np.var(means) == pytest.approx(1 / 4, rel=0.03)
    # One relation: its scenarios, p (1 - p) / (n - 1).
    weights = resample_weights((100,), Bootstrap(20_000))
    assert np.var(weights @ values / 100) == pytest.approx(0.25 / 99, rel=0.03)


def test_fixed_relations_come_once_each_and_their_scenarios_are_drawn() -> None:
    fixed = Bootstrap(20_000, drawn="scenarios")
    weights = resample_weights((40, 60), fixed)
    assert weights[:, :40].sum(axis=1) == pytest.approx(40) and weights[:, 40:].sum(axis=1) == pytest.approx(60)
    # Constant within relations, so nothing varies; within them, each one's p (1 - p) / (n - 1) by its share squared.
    assert np.var(weights @ np.repeat([0.0, 1.0], [40, 60])) == pytest.approx(0)
    values = np.concatenate([np.repeat([0.0, 1.0], 20), np.repeat([0.0, 1.0], [45, 15])])
    expected = (40**2 / 39 * 0.25 + 60**2 / 59 * 0.75 * 0.25) / 100**2
    assert np.var(weights @ values / 100) == pytest.approx(expected, rel=0.03)
    rows = rows_of(np.repeat([0.0, 1.0], 10).reshape(2, 10, 1))
    assert mean_interval(rows, "score", fixed) == (0.5, 0.5, 0.5)
    half = 0.5 * 12.706 / 1.960  # Student's quantile for one degree of freedom, over the normal one
    assert mean_interval(rows, "score", QUICK)[1:] == pytest.approx((0.5 - half, 0.5 + half), rel=1e-3)


# ReVersion's leads over the plain words in scene accuracy in the default run, relation by relation
OVER_THE_WORDS = np.array([0.40, -0.14, 0.01, 0.08, 0.00, -0.01, 0.04, 0.02, 0.45, -0.01])


def _coverage(leads: np.ndarray) -> float:
    """Return how often the interval of one row of leads holds 0."""
    found = [mean_interval(rows_of(row[:, None, None]), "score", Bootstrap(1000)) for row in leads]
    return float(np.mean([low <= 0 <= high for _, low, high in found]))


@pytest.mark.parametrize(("relations", "held", "unevenly"), [(10, 0.95, 0.89), (5, 0.94, 0.74), (3, 0.93, 0.78)])
def test_intervals_hold_the_true_mean_as_often_as_the_report_says(relations: int, held: float, unevenly: float) -> None:
    generator = np.random.default_rng(0)
    even = generator.normal(size=(400, relations))  # leads, whose true mean is 0
    uneven = generator.choice(OVER_THE_WORDS - OVER_THE_WORDS.mean(), size=even.shape) + 0.02 * even
    assert _coverage(even) == pytest.approx(held, abs=0.03)
    assert _coverage(uneven) == pytest.approx(unevenly, abs=0.04)
    shares = {count: f"{100 * share:.0f}" for count, share in ((relations, held), (-relations, unevenly))}
    words = {10: "in {} of 100 cases for ten", 5: "{} for five", 3: "and {} for three",
             -10: "in {}, 74", -5: " {} and 78", -3: "and {}."}  # fmt: skip
    assert all(words[count].format(share) in INTERVALS for count, share in shares.items())


def test_intervals_are_wide_where_scenarios_vary_as_in_the_lead_over_textual_inversion() -> None:
    """Of that lead's variance, 41 % is the scenarios' noise, which counts within the relations and once more."""
    generator = np.random.default_rng(0)
    lead, noise = generator.normal(size=(400, 10, 1, 1)), generator.normal(size=(400, 10, 100, 1))
    trials = lead + np.sqrt(100 * 0.41 / 0.59) * noise
    found = [mean_interval(rows_of(values), "score", Bootstrap(1000)) for values in trials]
    held = float(np.mean([low <= 0 <= high for _, low, high in found]))
    assert held == pytest.approx(0.98, abs=0.015)
    assert "and it held in 98." in " ".join(Path("reports/README.md").read_text().split())


def test_images_of_a_scenario_are_paired_one_by_one() -> None:
    """A metric that each method has in another image of the same scenario says nothing of their difference."""
    values = np.random.default_rng(0).normal(size=(2, 10, 2))
    ours, theirs = rows_of(values, "a"), rows_of(values, "b")
    ours.loc[ours["seed"] == 1, "score"] = np.nan
    assert paired_difference(pd.concat([ours, theirs]), "a", "b", "score", QUICK).mean == 0
    theirs.loc[theirs["seed"] == 0, "score"] = np.nan
    assert paired_difference(pd.concat([ours, theirs]), "a", "b", "score", QUICK) is None


def test_drawn_trainings_vary_as_much_as_their_mean() -> None:
    generator = np.random.default_rng(0)
    values = np.repeat(generator.normal(size=(2, 1, 3)), 10, axis=1)  # only trainings vary
    rows = rows_of(values).rename(columns={"seed": "trial"})
    weights = resample_weights((3, 3), Bootstrap(20_000, drawn="trainings"))
    assert (weights.reshape(-1, 2, 3).sum(axis=2) == 3).all() and weights.max() == 3  # one of two draws weighs half
    means = weights @ values[:, 0].ravel() / 6
    assert np.var(means) == pytest.approx(values[:, 0].var(axis=1, ddof=1).sum() / 3 / 4, rel=0.03)
    mean, low, high = mean_interval(rows, "score", Bootstrap(20_000, drawn="trainings"))
    wider = 2.776 / 1.960  # Student's quantile for 2 * (3 - 1) degrees of freedom, over the normal one
    ends = values.mean() + wider * (np.quantile(means, [0.025, 0.975]) - values.mean())
    assert (mean, low, high) == pytest.approx((values.mean(), *ends), rel=1e-3)
    assert mean_interval(rows, "score", Bootstrap(drawn="scenarios")) == pytest.approx((mean, mean, mean))


def test_seeds_of_a_scenario_are_one_cluster() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(1, 100, 1))
    once = mean_interval(rows_of(values), "score", QUICK)
    thrice = mean_interval(rows_of(np.repeat(values, 3, axis=2)), "score", QUICK)
    assert thrice == pytest.approx(once)  # three copies of the same evidence narrow nothing


def test_undefined_rows_are_left_out() -> None:
    values = np.array([[[1.0], [np.nan]], [[np.nan], [np.nan]]])
    assert mean_interval(rows_of(values), "score", QUICK) == (1.0, -np.inf, np.inf)  # a single scenario is left


@pytest.mark.parametrize(("relations", "drawn"), [(1, "relations"), (1, "scenarios"), (3, "scenarios")])
def test_one_scenario_does_not_tell_how_much_others_vary(relations: int, drawn: Resampled) -> None:
    values = np.arange(relations * 2.0).reshape(relations, 1, 2)  # two images of the one
    rows, bootstrap = pd.concat([rows_of(values + 0.5, "a"), rows_of(values, "b")]), replace(QUICK, drawn=drawn)
    assert paired_difference(rows, "a", "b", "score", bootstrap) == (0.5, -np.inf, np.inf)
    assert mean_interval(rows[rows["method"] == "b"], "score", bootstrap)[1:] == (-np.inf, np.inf)


def test_a_metric_defined_nowhere_has_no_mean() -> None:
    assert mean_interval(rows_of(np.full((1, 3, 1), np.nan)), "score", QUICK) is None


def test_a_constant_lead_has_no_width_however_much_scenarios_differ() -> None:
    values = np.random.default_rng(0).normal(size=(4, 25, 1))
    rows = pd.concat([rows_of(values + 0.5, "a"), rows_of(values, "b")])
    mean, low, high = paired_difference(rows, "a", "b", "score", QUICK)
    assert (mean, low, high) == pytest.approx((0.5, 0.5, 0.5))
    back = paired_difference(rows, "b", "a", "score", QUICK)
    assert back == pytest.approx((-mean, -high, -low))


def test_rounding_excludes_no_zero() -> None:
    ours = np.array([[[1.0, 0, 0]], [[1, 1, 0]]])
    rows = pd.concat([rows_of(ours, "a"), rows_of(ours[..., ::-1], "b")])  # means of images in another order
    assert paired_difference(rows, "a", "b", "score", QUICK) == (0, 0, 0)


def test_pairing_ignores_the_order_of_rows_and_unshared_scenarios() -> None:
    values = np.random.default_rng(0).normal(size=(4, 25, 1))
    a, b = rows_of(values + 0.5, "a"), rows_of(values, "b")
    rows = pd.concat([a.sample(frac=1, random_state=1), b[b["relation"] != "relation_3"]])
    assert paired_difference(rows, "a", "b", "score", QUICK) == pytest.approx((0.5, 0.5, 0.5))
    assert paired_difference(rows, "b", "a", "score", QUICK) == pytest.approx((-0.5, -0.5, -0.5))


def test_trainings_are_paired_by_their_seed() -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 3))
    a, b = (
        rows_of(each, name).rename(columns={"seed": "trial"}) for each, name in ((values + 0.1, "a"), (values, "b"))
    )
    rows = pd.concat([a[(a["relation"] != "relation_0") | (a["trial"] > 0)], b])  # one training has no value under a
    found = paired_difference(rows, "a", "b", "score", Bootstrap(400, drawn="trainings"))
    assert found == pytest.approx((0.1, 0.1, 0.1))


def test_nothing_defined_under_both_methods_is_no_difference() -> None:
    rows = pd.concat([rows_of(np.ones((1, 3, 1)), "first"), rows_of(np.full((1, 3, 1), np.nan), "second")])
    assert paired_difference(rows, "third", "first", "score") is None
    assert paired_difference(rows, "first", "second", "score") is None and mean_interval(rows[3:], "score") is None
    apart = pd.concat([rows_of(np.ones((1, 3, 1)), "a"), rows_of(np.ones((1, 3, 1)), "b").assign(index=9)])
    assert paired_difference(apart, "a", "b", "score") is None


def test_the_same_seed_gives_the_same_interval() -> None:
    rows = rows_of(clustered(np.random.default_rng(0), 5, 20, 2))
    assert mean_interval(rows, "score", QUICK) == mean_interval(rows, "score", QUICK)
    assert mean_interval(rows, "score", QUICK) != mean_interval(rows, "score", Bootstrap(400, seed=1))


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_intervals_cover_the_true_mean_as_often_as_they_say(level: float) -> None:
    generator = np.random.default_rng(0)
    bootstrap = Bootstrap(resamples=300, level=level)
    covered = [
        low <= 0 <= high
        for _ in range(200)
        for _, low, high in [mean_interval(rows_of(clustered(generator, 30, 5, 2)), "score", bootstrap)]
    ]
    assert np.mean(covered) == pytest.approx(level, abs=0.06)
