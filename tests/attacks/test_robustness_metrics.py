"""Figures of robustness against loops and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, gmean

from compresslens.attacks.robustness import (
    cost_metrics,
    distance_metrics,
    harder,
    median_interval,
    slower,
    success_band,
    success_curve,
)
from compresslens.statistics import bootstrap_interval, wilson_interval

GENERATOR = np.random.default_rng(0)
VALUES = GENERATOR.gamma(2.0, 0.3, 61)


def test_median_of_finite_values() -> None:
    assert median_interval(VALUES) == (np.median(VALUES), bootstrap_interval(VALUES, np.median))


@pytest.mark.parametrize(
    ("failed", "value_is_finite", "bounds_are_finite"),
    [(3, True, (True, True)), (28, True, (True, False)), (31, False, (True, False)), (61, False, (False, False))],
)
def test_failures_are_infinitely_far(failed: int, value_is_finite: bool, bounds_are_finite: Any) -> None:
    values = VALUES.copy()
    values[:failed] = math.inf
    median, interval = median_interval(values)
    assert interval is not None
    assert math.isfinite(median) == value_is_finite
    assert tuple(map(math.isfinite, interval)) == bounds_are_finite
    if value_is_finite:
        assert median == sorted(values)[30]
        assert interval[0] <= median <= interval[1]


def test_no_values() -> None:
    median, interval = median_interval(np.empty(0))
    assert math.isnan(median)
    assert interval is None


def test_half_of_an_even_number_failed() -> None:
    assert median_interval(np.array([1.0, math.inf]))[0] == math.inf


def test_the_curve_against_a_loop() -> None:
    l2 = np.array([0.5, 0.2, math.inf, 0.5, 0.9])
    radii = np.array([0.0, 0.2, 0.5, 0.8, 1.0])
    assert success_curve(l2, radii).tolist() == [sum(d <= r for d in l2) / 5 for r in radii]


def test_the_band_is_the_binomials() -> None:
    """At each radius the share of a resample is binomial, with the share of the sample as its probability."""
    radii = np.quantile(VALUES, [0.1, 0.5, 0.8])
    low, high = success_band(VALUES, radii, n_resamples=20_000)
    shares = success_curve(VALUES, radii)
    n = len(VALUES)
    assert low == pytest.approx(binom.ppf(0.025, n, shares) / n, abs=1.01 / n)
    assert high == pytest.approx(binom.ppf(0.975, n, shares) / n, abs=1.01 / n)
    outside = success_band(VALUES, np.array([-1.0, 100.0]))
    assert [bound.tolist() for bound in outside] == [[0, 1], [0, 1]]


def columns(**values: list[float]) -> dict[str, Any]:
    return {name: np.array(value) for name, value in values.items()}


def test_distances() -> None:
    nan, inf = math.nan, math.inf
    samples = columns(
        cw_attacked=[True, True, False, True, True],
        cw_l2=[0.4, inf, nan, 0.2, 0.9],
        reference_cw_l2=[0.2, 0.1, nan, inf, 0.3],
        cw_transferred=[1, 0, nan, nan, 0],
    )
    metrics = distance_metrics(samples)
    assert (metrics["robustness/cw_success"].value, metrics["robustness/cw_success"].reference) == (0.75, 0.75)
    assert metrics["robustness/cw_success"].ci95 == wilson_interval(3, 4)
    assert metrics["robustness/cw_median_l2"].value == pytest.approx((0.4 + 0.9) / 2)
    assert metrics["robustness/cw_median_l2"].reference == pytest.approx(0.25)
    mean = metrics["robustness/cw_mean_l2"]
    assert (mean.value, mean.reference, mean.n) == (pytest.approx(0.5), pytest.approx(0.2), 3)
    transfer = metrics["robustness/transfer_from_reference"]
    assert (transfer.value, transfer.n, transfer.ci95) == (1 / 3, 3, wilson_interval(1, 3))

    found = harder(samples)
    assert found is not None
    assert found["distance_ratio"] == pytest.approx(gmean([0.4 / 0.2, 0.9 / 0.3]))
    assert found["n"] == 2
    del samples["reference_cw_l2"]
    assert set(distance_metrics(samples)) == {f"robustness/cw_{name}" for name in ("success", "median_l2", "mean_l2")}


def test_twice_as_far_is_a_ratio_of_two_without_doubt() -> None:
    samples = {"cw_attacked": np.ones(61, dtype=bool), "cw_l2": 2 * VALUES, "reference_cw_l2": VALUES}
    found = harder(samples)
    assert found == {"distance_ratio": pytest.approx(2), "ci95": pytest.approx([2, 2]), "n": 61}


def test_nothing_to_compare() -> None:
    samples = columns(cw_l2=[math.inf], reference_cw_l2=[1.0])
    assert harder({**samples, "cw_attacked": np.array([True])}) is None
    nothing = {f"{p}cw_{n}": np.array([math.nan]) for p in ("", "reference_") for n in COSTS}
    assert slower(nothing) is None
    assert all(metric.n == 0 and math.isnan(metric.value) for metric in cost_metrics(nothing).values())


COSTS = ("adam_evaluations", "adam_first_success", "adam_seconds", "network_seconds")


def test_a_slower_network_does_not_make_the_attack_harder() -> None:
    """The same evaluations at thrice the cost of each: slower by the clock, not without the network's own cost."""
    nan = math.nan
    ours = {"adam_evaluations": [300, 200, nan], "adam_first_success": [5, math.inf, nan]}
    theirs = {"adam_evaluations": [300, 200, nan], "adam_first_success": [4, 6, nan]}
    times = {"adam_seconds": [9.0, 6.0, nan], "network_seconds": [0.03, 0.03, nan]}
    samples = columns(
        **{f"cw_{name}": values for name, values in (ours | times).items()},  # type: ignore[arg-type]
        **{f"reference_cw_{name}": values for name, values in theirs.items()},
        **{f"reference_cw_{name}": [value / 3 for value in values] for name, values in times.items()},
    )
    found = slower(samples)
    assert found is not None
    assert found["evaluations_ratio"] == pytest.approx(1)
    assert found["seconds_ratio"] == pytest.approx(3)
    assert found["seconds_ratio_without_networks"] == pytest.approx(1)
    assert (found["network_seconds"], found["reference_network_seconds"]) == (pytest.approx(0.03), pytest.approx(0.01))
    metrics = cost_metrics(samples)
    gradients, seconds, first = (metrics[f"robustness/cw_{name}"] for name in ("gradients", "seconds", "first_success"))
    assert (gradients.value, gradients.reference, gradients.n) == (250, 250, 2)
    assert (seconds.value, seconds.reference, seconds.ci95) == (7.5, pytest.approx(2.5), None)
    assert (first.value, first.reference) == (math.inf, 5)
