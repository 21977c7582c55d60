"""A model: the runs of one name, their seeds together, compared with the network that each came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from compresslens.statistics import Interval, mcnemar_p, seeds_interval, seeds_mean, wilcoxon_p
from compresslens.study.reading import Run

# metric: the column whose mean it is
MEANS = {
    "accuracy/brier": "brier",
    "cam/pointing_game": "cam_pointing_game",
    "cam/energy_in_mask": "cam_energy_in_mask",
    "cam/max_box_acc_v2": "cam_max_box_acc_v2",
    "cam/insertion_auc": "cam_insertion_auc",
    "cam/deletion_auc": "cam_deletion_auc",
    "cam/similarity": "cam_similarity",
    "embedding/knn_accuracy": "embedding_knn",
    "embedding/silhouette": "embedding_silhouette",
    "embedding/trustworthiness": "tsne_trustworthiness",
}
DISTANCE = "robustness/distance_ratio"  # what the paired change of distances is called


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval (None where it has none) and the number of samples behind it, of all seeds."""

    value: float
    interval: Interval | None
    n: int


@dataclass(frozen=True)
class Change:
    """Model against reference, in pairs of the same sample.

    Attributes:
        estimate: of the difference, or of a ratio.
        p: of the paired test, not adjusted.
    """

    estimate: Estimate
    p: float


@dataclass(frozen=True)
class Attacked:
    """On how many images the attack was run, and where it failed.

    Attributes:
        images: that were to be attacked.
        attacked: of these, those that model and reference classify correctly.
        failed: of the attacked, those on which it found nothing for the model.
        reference_failed: likewise for the reference.
    """

    images: int
    attacked: int
    failed: int
    reference_failed: int


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
        """The figure with its interval: the run's own, or of several seeds that of :func:`seeds_interval`."""
        n = sum(run.results["metrics"].get(metric, {}).get("n", 0) for run in self.runs)
        if len(self.runs) == 1:
            interval = self.runs[0].results["metrics"].get(metric, {}).get("ci95")
            known = interval is not None and None not in interval
            return Estimate(self.value(metric), tuple(interval) if known else None, n)
        values = [_values(run.samples, metric) for run in self.runs]
        usable = all(len(of_run) and np.isfinite(of_run).all() for of_run in values)
        return Estimate(self.value(metric), _interval(values) if usable else None, n)

    def change(self, metric: str) -> Change | None:
        """Model minus reference, of a metric that is a mean over samples; None where that is unknown."""
        pairs = self._pairs(metric)
        if pairs is None:
            return None
        differences = [pair["ours"] - pair["theirs"] for pair in pairs]
        test = mcnemar_p if metric == "accuracy/top1" else wilcoxon_p
        p = test(pairs[0]["ours"], pairs[0]["theirs"]) if len(pairs) == 1 else _p(differences)
        return Change(_estimate(differences), p)

    def relative_change(self, metric: str) -> Change | None:
        """The model's mean over the reference's, minus one; None where that is unknown, or the reference's is not
        positive.

        The interval is by linearization: both means vary with the samples, and together.
        """
        pairs, change = self._pairs(metric), self.change(metric)
        if pairs is None or change is None:
            return None
        theirs = float(np.mean([pair["theirs"].mean() for pair in pairs]))
        if not theirs > 0:
            return None
        ratio = float(np.mean([pair["ours"].mean() for pair in pairs])) / theirs
        return Change(
            _estimate([ratio - 1 + (pair["ours"] - ratio * pair["theirs"]) / theirs for pair in pairs]), change.p
        )

    def distance_ratio(self) -> Change | None:
        """Geometric mean of the model's C&W distances over the reference's, of the same images; None if not known.

        Images on which either attack failed have no ratio; see :meth:`attacked`.
        """
        return self._ratio("cw_l2")

    def evaluations_ratio(self) -> Change | None:
        """The same of the gradient evaluations that Carlini & Wagner's own attack takes."""
        return self._ratio("cw_adam_evaluations")

    def attacked(self) -> Attacked:
        """Of all seeds together."""
        counts = np.zeros(4, int)
        for run in self.runs:
            if (distances := _distances(run.samples)) is not None:
                images = int(run.samples["cw_attacked"].notna().sum())
                failed = (~np.isfinite(distances)).sum()
                counts += (images, len(distances), failed["ours"], failed["theirs"])
        return Attacked(*map(int, counts))

    def detail(self, probe: str) -> list[dict[str, Any]]:
        """How each run measured something, where it did."""
        found = [run.results.get("details", {}).get(probe) for run in self.runs]
        return [details for details in found if details]

    def _mean(self, metric: str, part: str) -> float:
        found = [run.results["metrics"].get(metric, {}).get(part) for run in self.runs]
        known = [float(value) for value in found if value is not None]
        return float(np.mean(known)) if len(known) == len(self.runs) else math.nan

    def _pairs(self, metric: str) -> list[pd.DataFrame] | None:
        """Of each run "ours" and "theirs" by sample; None if a run has none."""
        found = [_pair(run.samples, metric) for run in self.runs]
        known = [pair for pair in found if pair is not None and len(pair)]
        return known if len(known) == len(found) else None

    def _ratio(self, column: str) -> Change | None:
        pairs = []
        for run in self.runs:
            pair = _distances(run.samples, column)
            if pair is None:
                return None
            usable = pair[(np.isfinite(pair.to_numpy()) & (pair.to_numpy() > 0)).all(1)]
            if not len(usable):
                return None
            pairs.append(usable)
        logs = [pd.Series(np.log(pair["ours"].to_numpy() / pair["theirs"].to_numpy()), pair.index) for pair in pairs]
        estimate = _estimate(logs)
        low, high = estimate.interval or (math.nan, math.nan)
        p = wilcoxon_p(logs[0], np.zeros(len(logs[0]))) if len(logs) == 1 else _p(logs)
        return Change(Estimate(math.exp(estimate.value), (math.exp(low), math.exp(high)), estimate.n), p)


def models_of(runs: Sequence[Run]) -> list[Model]:
    """The models, in the order of the runs."""
    return [Model(name, list(of_name)) for name, of_name in groupby(runs, key=lambda run: run.name)]


def _estimate(values: Sequence[pd.Series]) -> Estimate:
    return Estimate(float(np.mean([of_run.mean() for of_run in values])), _interval(values), sum(map(len, values)))


def _interval(values: Sequence[pd.Series]) -> Interval:
    return seeds_interval([of_run.to_numpy() for of_run in values], [of_run.index.to_numpy() for of_run in values])


def _p(values: Sequence[pd.Series]) -> float:
    return seeds_mean([of_run.to_numpy() for of_run in values], [of_run.index.to_numpy() for of_run in values]).p


def hits(samples: pd.DataFrame) -> pd.DataFrame | None:
    """Of each sample that both have seen "label" and whether the model ("ours") and its reference ("theirs") are right.

    Returns:
        None if the run did not note predictions of both.
    """
    needed = ["label", "prediction", "reference_prediction"]
    if not set(needed) <= set(samples.columns):
        return None
    rows = samples.dropna(subset=needed)
    label, ours, theirs = (rows[name].astype(np.int64) for name in needed)
    return pd.DataFrame({"label": label, "ours": ours == label, "theirs": theirs == label})


def attacked(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples that were attacked: those that model and reference classify correctly."""
    if "cw_attacked" not in samples:
        return samples.iloc[:0]
    return samples[samples["cw_attacked"].fillna(False).astype(bool)]


def _values(samples: pd.DataFrame, metric: str) -> pd.Series:
    """Of each sample what the metric is the mean of; nothing if that is not known."""
    if metric == "accuracy/top1" and {"prediction", "label"} <= set(samples.columns):
        rows = samples.dropna(subset=["prediction", "label"])
        return (rows["prediction"] == rows["label"]).astype(np.float64)
    if metric == "accuracy/agreement" and {"prediction", "reference_prediction"} <= set(samples.columns):
        rows = samples.dropna(subset=["prediction", "reference_prediction"])
        return (rows["prediction"] == rows["reference_prediction"]).astype(np.float64)
    if metric == "robustness/cw_success" and {"cw_l2", "cw_attacked"} <= set(samples.columns):
        distances = attacked(samples)["cw_l2"].astype(np.float64)
        return pd.Series(np.isfinite(distances.to_numpy()), distances.index, dtype=np.float64)
    column = MEANS.get(metric)
    return samples[column].dropna().astype(np.float64) if column in samples else pd.Series(dtype=np.float64)


def _pair(samples: pd.DataFrame, metric: str) -> pd.DataFrame | None:
    if metric == "accuracy/top1":
        known = hits(samples)
        return None if known is None else known[["ours", "theirs"]].astype(np.float64)
    column = MEANS.get(metric)
    if column is None or not {column, f"reference_{column}"} <= set(samples.columns):
        return None
    return _sides(samples, column).dropna()


def _distances(samples: pd.DataFrame, column: str = "cw_l2") -> pd.DataFrame | None:
    """Of the attacked images on which the attack was run; infinite where it failed."""
    if not {column, f"reference_{column}", "cw_attacked"} <= set(samples.columns):
        return None
    return _sides(attacked(samples), column).dropna()


def _sides(samples: pd.DataFrame, column: str) -> pd.DataFrame:
    return pd.DataFrame({"ours": samples[column], "theirs": samples[f"reference_{column}"]}).astype(np.float64)
