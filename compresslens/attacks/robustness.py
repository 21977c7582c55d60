"""Figures of robustness from what attacks found for each image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from compresslens.reporting.metric import Metric
from compresslens.samples import Columns, Floats
from compresslens.statistics import Interval, bootstrap_interval, paired_difference_interval, wilson_interval


def median_interval(values: Floats) -> tuple[float, Interval | None]:
    """Median of numbers that may be infinite, and its bootstrap interval, whose bounds may be, too.

    Returns:
        NaN and None if there are no values.
    """
    if len(values) == 0:
        return math.nan, None
    largest = float(np.max(values, initial=0.0, where=np.isfinite(values)))
    beyond = 2 * largest + 1  # stands for infinity; medians between it and a number are infinite, too
    finite = np.where(np.isfinite(values), values, beyond)
    low, high = (bound if bound <= largest else math.inf for bound in bootstrap_interval(finite, np.median))
    return float(np.median(values)), (low, high)


def success_curve(l2: Floats, radii: Floats) -> Floats:
    """Share of images whose nearest adversarial lies within each radius (R numbers in [0, 1])."""
    return (l2[:, None] <= radii).mean(0)


def success_band(l2: Floats, radii: Floats, n_resamples: int = 1000, seed: int = 0) -> tuple[Floats, Floats]:
    """Pointwise 95 % bootstrap band of :func:`success_curve`.

    Args:
        l2: N distances, infinite where the attack failed; at least one.
        radii: R radii.
        n_resamples: of the images.
        seed: of the resampling.

    Returns:
        Lower and upper bound, R numbers each.
    """
    count = len(l2)
    picks = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n_resamples)
    curves = picks @ (l2[:, None] <= radii).astype(np.float64) / count
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return low, high


def distance_metrics(samples: Columns) -> dict[str, Metric]:
    """Success and distances of the model, beside the reference's on the same images.

    Args:
        samples: `cw_attacked` (bool) and `cw_l2` (infinite where the attack failed) of each image; with a reference
            also `reference_cw_l2`, and `cw_transferred` (1 or 0: whether the reference's adversarial as it is fools the
            model; NaN where there is none).

    Returns:
        `cw_success`: share of the attacked images with an adversarial. `cw_median_l2`: of all attacked images, where a
        failure counts as infinitely far; undefined if half of the attacks or more failed. `cw_mean_l2`: of the
        successes alone, and `n` is their number. `transfer_from_reference`: share of the reference's adversarials.
    """
    attacked = samples["cw_attacked"]
    ours = samples["cw_l2"][attacked]
    theirs = samples["reference_cw_l2"][attacked] if "reference_cw_l2" in samples else None
    metrics = {
        "cw_success": share_metric(np.isfinite(ours), None if theirs is None else np.isfinite(theirs)),
        "cw_median_l2": median_metric(ours, theirs),
        "cw_mean_l2": mean_of_finite(ours, theirs),
    }
    if theirs is not None:
        transferred = samples["cw_transferred"][attacked]
        metrics["transfer_from_reference"] = share_metric(transferred[np.isfinite(transferred)] > 0)
    return {f"robustness/{name}": metric for name, metric in metrics.items()}


def cost_metrics(samples: Columns) -> dict[str, Metric]:
    """What Carlini & Wagner's own attack takes, on the images where it was run.

    Args:
        samples: `cw_adam_evaluations`, `cw_adam_first_success` (infinite where it failed) and `cw_adam_seconds` of each
            image, NaN where it was not run; the same with `reference_` in front.

    Returns:
        `cw_gradients` and `cw_first_success`: medians. `cw_seconds`: mean; without an interval, since the images of a
        batch share the time.
    """
    rows = np.isfinite(samples["cw_adam_evaluations"])

    def both(name: str) -> tuple[Floats, Floats | None]:
        reference = samples.get(f"reference_cw_adam_{name}")
        return samples[f"cw_adam_{name}"][rows], None if reference is None else reference[rows]

    seconds, others = both("seconds")
    mean = Metric(_mean(seconds), None, len(seconds), None if others is None else _mean(others))
    metrics = {
        "cw_gradients": median_metric(*both("evaluations")),
        "cw_seconds": mean,
        "cw_first_success": median_metric(*both("first_success")),
    }
    return {f"robustness/{name}": metric for name, metric in metrics.items()}


def harder(samples: Columns) -> dict[str, Any] | None:
    """Whether the model takes larger perturbations than the reference, in pairs of the same image.

    Returns:
        `distance_ratio`: geometric mean of the model's distance over the reference's where both attacks succeeded, with
        interval: above 1, the model is the harder to fool. None if there is no such image.
    """
    both = samples["cw_attacked"] & np.isfinite(samples["cw_l2"]) & np.isfinite(samples["reference_cw_l2"])
    return _ratio("distance_ratio", samples["cw_l2"][both], samples["reference_cw_l2"][both])


def slower(samples: Columns) -> dict[str, Any] | None:
    """Whether the attack takes longer on the model than on the reference, in pairs of the same image.

    Returns:
        `evaluations_ratio`: geometric mean of the ratio of gradient evaluations, with interval. `seconds_ratio`: of the
        total times. `network_seconds` and `reference_network_seconds`: what a gradient evaluation of the networks
        themselves takes per image, in batches as large as the attack begins with. `seconds_ratio_without_networks`: the
        ratio of the times, each divided by its network's: what is left is how much more work the attack has, whatever
        a pass through the network costs. None where the attack was not run.
    """
    rows = np.isfinite(samples["cw_adam_evaluations"])
    found = _ratio(
        "evaluations_ratio", samples["cw_adam_evaluations"][rows], samples["reference_cw_adam_evaluations"][rows]
    )
    if found is None:
        return None
    means = [
        _mean(samples[f"{prefix}cw_{name}"][rows])
        for name in ("adam_seconds", "network_seconds")
        for prefix in ("", "reference_")
    ]
    ours, theirs, network, reference_network = means
    return found | {
        "seconds_ratio": ours / theirs,
        "network_seconds": network,
        "reference_network_seconds": reference_network,
        "seconds_ratio_without_networks": (ours / network) / (theirs / reference_network),
    }


def share_metric(hits: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_] | None = None) -> Metric:
    """A share with its Wilson interval; NaN of no images."""
    n = len(hits)
    if n == 0:
        return Metric(math.nan, None, 0)
    reference = None if others is None else float(others.mean())
    return Metric(float(hits.mean()), wilson_interval(int(hits.sum()), n), n, reference)


def median_metric(values: Floats, others: Floats | None = None) -> Metric:
    """A median with its bootstrap interval; values may be infinite."""
    median, interval = median_interval(values)
    return Metric(
        median, interval, len(values), None if others is None or not len(others) else float(np.median(others))
    )


def mean_of_finite(values: Floats, others: Floats | None = None) -> Metric:
    """A mean of the finite values with its bootstrap interval."""
    finite = values[np.isfinite(values)]
    reference = None if others is None else _mean(others[np.isfinite(others)])
    interval = bootstrap_interval(finite) if len(finite) else None
    return Metric(_mean(finite), interval, len(finite), reference)


def _ratio(name: str, ours: Floats, theirs: Floats) -> dict[str, Any] | None:
    """Geometric mean of ratios, with its bootstrap interval; of positive numbers only."""
    positive = (ours > 0) & (theirs > 0)
    if not positive.any():
        return None
    ours, theirs = np.log(ours[positive]), np.log(theirs[positive])
    low, high = paired_difference_interval(ours, theirs)
    value = math.exp(float((ours - theirs).mean()))
    return {name: value, "ci95": [math.exp(low), math.exp(high)], "n": int(positive.sum())}


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan
