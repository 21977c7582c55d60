"""Columns of values per sample, of a model and of its reference; their means and their differences in pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from compresslens.reporting.metric import Metric
from compresslens.statistics import bootstrap_interval, paired_difference_interval

Columns = dict[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]
MODEL, REFERENCE = "", "reference_"  # before the names of columns
NAMES = {MODEL: "model", REFERENCE: "reference"}


def mean_metric(values: Floats, others: Floats | None = None) -> Metric:
    """Mean with its bootstrap interval, beside the reference's on the same samples.

    Args:
        values: N numbers, NaN where not defined.
        others: the reference's. Samples on which one of the two is not defined are left out of both.

    Returns:
        NaN of no samples if none is left.
    """
    known = ~np.isnan(values) if others is None else ~np.isnan(values) & ~np.isnan(others)
    n = int(known.sum())
    if n == 0:
        return Metric(math.nan, None, 0)
    reference = None if others is None else float(others[known].mean())
    return Metric(float(values[known].mean()), bootstrap_interval(values[known]), n, reference)


def whole_metric(values: Floats, others: Floats | None = None) -> Metric:
    """Mean over all samples with its bootstrap interval, and the reference's: of what is defined for all or for none.

    Args:
        values: N numbers. One that is not finite leaves the whole undefined (NaN).
        others: the reference's. Its figure is there even where the model has none.
    """
    reference = None if others is None or not np.isfinite(others).all() else float(others.mean())
    if not np.isfinite(values).all():
        return Metric(math.nan, None, len(values), reference)
    return Metric(float(values.mean()), bootstrap_interval(values), len(values), reference)


def mean_summary(values: Floats) -> dict[str, Any]:
    """Mean, interval and number of the values that are defined, plain."""
    metric = mean_metric(values).as_json()
    return {name: metric[name] for name in ("value", "ci95", "n")}


def paired_change(ours: Floats, theirs: Floats) -> dict[str, Any] | None:
    """Model minus reference over the samples where both are defined, with interval: 0 outside of it, and they differ.

    Returns:
        `change`, `ci95` and `n`; None if there is no such sample.
    """
    known = ~np.isnan(ours) & ~np.isnan(theirs)
    if not known.any():
        return None
    interval = paired_difference_interval(ours[known], theirs[known])
    return {"change": float((ours[known] - theirs[known]).mean()), "ci95": list(interval), "n": int(known.sum())}
