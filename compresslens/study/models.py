"""A model: the runs of one name, their seeds pooled, compared with the network that each came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from compresslens.samples import Floats
from compresslens.statistics import Interval, mcnemar_p, seeds_interval, wilcoxon_p
from compresslens.study.reading import Run

# metric: what it is the mean of, per sample
MEANS = {
    "cam/pointing_game": "cam_pointing_game",
    "cam/energy_in_mask": "cam_energy_in_mask",
    "cam/max_box_acc_v2": "cam_max_box_acc_v2",
    "cam/insertion_auc": "cam_insertion_auc",
    "cam/deletion_auc": "cam_deletion_auc",
    "embedding/knn_accuracy": "embedding_knn",
    "embedding/silhouette": "embedding_silhouette",
    "embedding/trustworthiness": "tsne_trustworthiness",
}


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval (None where it has none) and the number of samples behind it."""

    value: float
    interval: Interval | None
    n: int


@dataclass(frozen=True)
class Change:
    """Model against reference, in pairs of the same sample.

    Attributes:
        estimate: of the difference, or of the ratio of distances.
        p: of the paired test, not adjusted; with several seeds of all their pairs together.
    """

    estimate: Estimate
    p: float


@dataclass(frozen=True)
class Model:
    """The runs of one name.

    Attributes:
        name: of the runs.
        runs: one for each seed.
    """

    name: str
    runs: Sequence[Run]

    @property
    def has_reference(self) -> bool:
        """Whether all runs were held against the network that they came from."""
        return all(run.has_reference for run in self.runs)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that all runs have."""
        names = [set(run.results["metrics"]) for run in self.runs]
        return sorted(set.intersection(*names))

    def value(self, metric: str) -> float:
        """Mean over the seeds; NaN if a run does not have it."""
        return self._mean(metric, "value")

    def reference(self, metric: str) -> float:
        """Mean over the seeds of the reference's value; NaN if a run does not have it."""
        return self._mean(metric, "reference")

    def estimate(self, metric: str) -> Estimate:
        """The figure with its interval: the run's own, or from the samples of all seeds."""
        n = sum(run.results["metrics"].get(metric, {}).get("n", 0) for run in self.runs)
        if len(self.runs) == 1:
            interval = self.runs[0].results["metrics"].get(metric, {}).get("ci95")
            known = interval is not None and None not in interval
            return Estimate(self.value(metric), tuple(interval) if known else None, n)
        values = [self._values(run, metric) for run in self.runs]
        usable = all(len(of_run) and np.isfinite(of_run).all() for of_run in values)
        return Estimate(self.value(metric), seeds_interval(values) if usable else None, n)

    def change(self, metric: str) -> Change | None:
        """Model minus reference, of a metric that is a mean over samples; None where that is unknown."""
        if metric == "accuracy/top1":
            pairs = [_hits(run.samples) for run in self.runs]
        else:
            pairs = [_pair(run.samples, MEANS.get(metric)) for run in self.runs]
        if any(pair is None or not len(pair[0]) for pair in pairs):
            return None
        known = [pair for pair in pairs if pair is not None]
        ours, theirs = (np.concatenate(side) for side in zip(*known, strict=True))
        differences = [first - second for first, second in known]
        estimate = Estimate(float(np.mean([d.mean() for d in differences])), seeds_interval(differences), len(ours))
        test = mcnemar_p if metric == "accuracy/top1" else wilcoxon_p
        return Change(estimate, test(ours, theirs))

    def distance_ratio(self) -> Change | None:
        """Geometric mean of the model's C&W distances over the reference's, of the same images; None if not known.

        Images on which either attack failed have no ratio, but take part in the test.
        """
        logs, ours, theirs = [], [], []
        for run in self.runs:
            pair = _distances(run.samples)
            if pair is None:
                return None
            usable = np.isfinite(pair[0]) & np.isfinite(pair[1]) & (pair[0] > 0) & (pair[1] > 0)
            if not usable.any():
                return None
            logs.append(np.log(pair[0][usable] / pair[1][usable]))
            ours.append(pair[0])
            theirs.append(pair[1])
        low, high = seeds_interval(logs)
        value = math.exp(float(np.mean([of_run.mean() for of_run in logs])))
        estimate = Estimate(value, (math.exp(low), math.exp(high)), sum(map(len, logs)))
        return Change(estimate, wilcoxon_p(np.concatenate(ours), np.concatenate(theirs)))

    def detail(self, probe: str) -> list[dict[str, Any]]:
        """How each run measured something, where it did."""
        found = [run.results.get("details", {}).get(probe) for run in self.runs]
        return [details for details in found if details]

    def _mean(self, metric: str, part: str) -> float:
        found = [run.results["metrics"].get(metric, {}).get(part) for run in self.runs]
        known = [float(value) for value in found if value is not None]
        return float(np.mean(known)) if len(known) == len(self.runs) else math.nan

    def _values(self, run: Run, metric: str) -> Floats:
        if metric == "accuracy/top1" and "prediction" in run.samples:
            rows = run.samples.dropna(subset=["prediction"])
            return np.asarray(rows["prediction"] == rows["label"], dtype=np.float64)
        column = MEANS.get(metric)
        return run.samples[column].dropna().to_numpy(np.float64) if column in run.samples else np.zeros(0)


def models_of(runs: Sequence[Run]) -> list[Model]:
    """The models, in the order of the runs."""
    return [Model(name, list(of_name)) for name, of_name in groupby(runs, key=lambda run: run.name)]


def _hits(samples: pd.DataFrame) -> tuple[Floats, Floats] | None:
    if not {"prediction", "reference_prediction", "label"} <= set(samples.columns):
        return None
    rows = samples.dropna(subset=["prediction", "reference_prediction"])
    ours, theirs = (rows[name] == rows["label"] for name in ("prediction", "reference_prediction"))
    return np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)


def _pair(samples: pd.DataFrame, column: str | None) -> tuple[Floats, Floats] | None:
    if column is None or not {column, f"reference_{column}"} <= set(samples.columns):
        return None
    rows = samples[[column, f"reference_{column}"]].dropna()
    return rows[column].to_numpy(np.float64), rows[f"reference_{column}"].to_numpy(np.float64)


def _distances(samples: pd.DataFrame) -> tuple[Floats, Floats] | None:
    if not {"cw_l2", "reference_cw_l2", "cw_attacked"} <= set(samples.columns):
        return None
    attacked = samples["cw_attacked"].fillna(False).astype(bool)
    rows = samples.loc[attacked, ["cw_l2", "reference_cw_l2"]]
    return rows["cw_l2"].to_numpy(np.float64), rows["reference_cw_l2"].to_numpy(np.float64)
