"""Is each model as sure as it is right? From the confidence (largest probability) and the outcome of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import ttest_1samp

from compresslens.samples import MODEL, REFERENCE, Floats
from compresslens.statistics import holm, seeds_interval, wilson_interval
from compresslens.study.models import Model

BINS = 10


def calibration(models: Sequence[Model]) -> list[dict[str, Any]]:
    """How far confidence and accuracy lie apart, in each model whose samples tell.

    Returns:
        For each model `name` and `n`; `overconfidence`, the mean confidence minus the accuracy (above 0: surer than
        right), and its `ci95`. With a reference also `reference_overconfidence`, and `brier_change`, model minus
        reference on the same images of the mean of (confidence - hit)² (Brier 1950, of the predicted class alone; less
        is better), with `brier_ci95` and `p`, of a paired t test, adjusted over the models (Holm). (Wilcoxon's test is
        not about means: a model that is too sure gains a little on most images and loses much on few.)
    """
    found: list[dict[str, Any]] = []
    for model in models:
        ours = [outcomes(run.samples, MODEL) for run in model.runs]
        if any(of_run is None for of_run in ours):
            continue
        gaps = [confidence - hit for confidence, hit in (of_run for of_run in ours if of_run is not None)]
        low, high = seeds_interval(gaps)
        row = {"name": model.name, "n": sum(map(len, gaps)), "overconfidence": _mean(gaps), "ci95": [low, high]}
        theirs = [outcomes(run.samples, REFERENCE) for run in model.runs]
        if all(of_run is not None for of_run in theirs):
            others = [confidence - hit for confidence, hit in (of_run for of_run in theirs if of_run is not None)]
            changes = [first**2 - second**2 for first, second in zip(gaps, others, strict=True)]
            row |= {
                "reference_overconfidence": _mean(others),
                "brier_change": _mean(changes),
                "brier_ci95": list(seeds_interval(changes)),
                "p": _mean_p(np.concatenate(changes)),
            }
        found.append(row)
    compared = [row for row in found if "p" in row]
    for row, p in zip(compared, holm([row["p"] for row in compared]) if compared else (), strict=True):
        row["p"] = float(p)
    return found


def outcomes(samples: pd.DataFrame, prefix: str) -> tuple[Floats, Floats] | None:
    """Confidence and hit (1 or 0) of each sample; of those that model and reference have both seen, if there is one.

    Args:
        samples: of a run.
        prefix: "" for the model, "reference_" for its reference.

    Returns:
        None if the run did not note them.
    """
    kinds = [kind for kind in (MODEL, REFERENCE) if f"{kind}confidence" in samples]
    if prefix not in kinds or "label" not in samples:
        return None
    said = [f"{kind}{name}" for kind in kinds for name in ("confidence", "prediction")]
    rows = samples.dropna(subset=["label", *said])
    if not len(rows):
        return None
    hit = np.asarray(rows[f"{prefix}prediction"] == rows["label"], dtype=np.float64)
    return rows[f"{prefix}confidence"].to_numpy(np.float64), hit


def reliability(confidence: Floats, hit: Floats, bins: int = BINS) -> npt.NDArray[np.float64]:
    """Points of a reliability diagram (DeGroot & Fienberg 1983): accuracy by confidence, in bins of the same width.

    Args:
        confidence: N numbers in [0, 1].
        hit: N, 1 or 0.
        bins: number of bins on (0, 1]; each with its upper edge, the first with 0, too.

    Returns:
        A row for each bin that is not empty: mean confidence, accuracy, its lower and upper bound (Wilson, 95 %), and
        the number of samples.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    for number in np.unique(place):
        inside = place == number
        count, hits = int(inside.sum()), int(hit[inside].sum())
        rows.append((confidence[inside].mean(), hits / count, *wilson_interval(hits, count), count))
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def _mean(groups: Sequence[Floats]) -> float:
    return float(np.mean([values.mean() for values in groups]))


def _mean_p(differences: Floats) -> float:
    """Of the hypothesis that the mean is 0; 1 if nothing differs, or there is one sample."""
    if len(differences) < 2 or not differences.any():
        return 1.0
    return float(ttest_1samp(differences, 0.0).pvalue)
