"""Is each model as sure as it is right? From the confidence (largest probability) and the outcome of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from compresslens.samples import MODEL, REFERENCE, Floats
from compresslens.statistics import seeds_interval, wilson_interval
from compresslens.study.models import Model

BINS = 10


def calibration(models: Sequence[Model]) -> list[dict[str, Any]]:
    """How far confidence and accuracy lie apart, in each model whose samples tell.

    Returns:
        For each model `name`, `n`, and `overconfidence`, the mean confidence minus the accuracy (above 0: surer than
        right), with its `ci95`; `reference_overconfidence` is None without a reference.
    """
    found: list[dict[str, Any]] = []
    for model in models:
        gaps = _gaps(model, MODEL)
        if gaps is None:
            continue
        theirs = _gaps(model, REFERENCE)
        low, high = seeds_interval([gap.to_numpy() for gap in gaps], [gap.index.to_numpy() for gap in gaps])
        found.append(
            {
                "name": model.name,
                "n": sum(map(len, gaps)),
                "overconfidence": _mean(gaps),
                "ci95": [low, high],
                "reference_overconfidence": None if theirs is None else _mean(theirs),
            }
        )
    return found


def outcomes(samples: pd.DataFrame, prefix: str) -> pd.DataFrame | None:
    """Confidence and hit (1 or 0) of each sample; of those that model and reference have both seen, if there is one.

    Args:
        samples: of a run.
        prefix: "" for the model, "reference_" for its reference.

    Returns:
        Columns "confidence" and "hit" by sample; None if the run did not note them.
    """
    kinds = [kind for kind in (MODEL, REFERENCE) if f"{kind}confidence" in samples]
    if prefix not in kinds or "label" not in samples:
        return None
    said = [f"{kind}{name}" for kind in kinds for name in ("confidence", "prediction")]
    rows = samples.dropna(subset=["label", *said])
    if not len(rows):
        return None
    hit = rows[f"{prefix}prediction"] == rows["label"]
    return pd.DataFrame({"confidence": rows[f"{prefix}confidence"], "hit": hit}).astype(np.float64)


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


def _gaps(model: Model, prefix: str) -> list[pd.Series] | None:
    """Of each run confidence minus hit, by sample; None if a run did not note them."""
    found = [outcomes(run.samples, prefix) for run in model.runs]
    known = [of_run["confidence"] - of_run["hit"] for of_run in found if of_run is not None]
    return known if len(known) == len(found) else None


def _mean(groups: Sequence[pd.Series]) -> float:
    return float(np.mean([values.mean() for values in groups]))
