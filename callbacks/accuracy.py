"""Accuracy, calibration and agreement with the reference, from per-sample values."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from callbacks.results import Results
from compresslens.reporting.metric import Metric
from compresslens.samples import Columns, whole_metric
from compresslens.statistics import expected_calibration_error, wilson_interval
from datamodules.samplers import evaluation_indices


class Accuracy(pl.Callback):
    """Writes the `accuracy/*` metrics of the test split (or of the validation split under `validate`).

    The reference sees the same batches. With several ranks the per-sample values are gathered, the padding of the last
    batches is dropped, and the metrics are computed from all samples: they do not depend on the number of ranks.
    """

    def __init__(self) -> None:
        self._batches: list[Columns] = []
        self._seconds = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts with nothing; complains at once, not after the fit, if there is nowhere to write to."""
        Results.of(trainer)
        self._batches, self._seconds = [], 0.0

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the per-sample values of a batch."""
        self._collect(trainer, pl_module, outputs, batch, batch_idx, trainer.test_dataloaders)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gathers and records."""
        self._record(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the per-sample values of a batch, unless this is the validation within a fit."""
        if trainer.state.fn == "validate":
            self._collect(trainer, pl_module, outputs, batch, batch_idx, trainer.val_dataloaders)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gathers and records, unless this is the validation within a fit."""
        if trainer.state.fn == "validate":
            self._record(trainer)

    def _collect(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, loader: Any) -> None:
        started = time.monotonic()
        indices, real = evaluation_indices(
            loader, batch_idx, loader.batch_size, trainer.global_rank, trainer.world_size
        )
        labels = batch[1].cpu()  # from here on in float64, which not every device has
        columns = {"index": indices, "label": labels, **per_sample(outputs["logits"].cpu(), labels)}
        if module.reference is not None:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                logits = module.reference(batch[0]).float()
            columns |= {f"reference_{name}": value for name, value in per_sample(logits.cpu(), labels).items()}
        keep = real.numpy()
        self._batches.append({name: value.numpy()[keep] for name, value in columns.items()})
        self._seconds += time.monotonic() - started

    def _record(self, trainer: pl.Trainer) -> None:
        started = time.monotonic()
        samples = gather(self._batches)
        results = Results.of(trainer)
        results.record_samples(trainer, samples["index"], {k: v for k, v in samples.items() if k != "index"})
        seconds = self._seconds + time.monotonic() - started
        results.record(trainer, "accuracy", accuracy_metrics(samples), seconds)
        self._batches, self._seconds = [], 0.0


def per_sample(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Prediction, confidence, margin (label's logit minus the best other), rank-five hit and Brier score per sample.

    The Brier score (Brier 1950) is the sum over all classes of the squared difference between the probability and what
    was to be predicted, 1 for the label and 0 for the others: in [0, 2], the less the better.
    """
    probabilities = logits.softmax(1)
    confidence, prediction = probabilities.max(1)
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    better = (logits > own).sum(1)
    return {
        "prediction": prediction,
        "confidence": confidence.double(),
        "margin": (own[:, 0] - others).double(),
        "top5": better < 5,
        "brier": (probabilities.double() - F.one_hot(labels, logits.shape[1])).square().sum(1),
    }


def accuracy_metrics(samples: Columns) -> dict[str, Metric]:
    """The `accuracy/*` metrics from per-sample values: fractions with Wilson intervals, a mean with a bootstrap's."""
    n = len(samples["index"])
    with_reference = "reference_prediction" in samples

    def hits(prefix: str) -> dict[str, npt.NDArray[np.bool_]]:
        correct = samples[f"{prefix}prediction"] == samples["label"]
        return {"top1": correct, "top5": samples[f"{prefix}top5"]}

    ours, theirs = hits(""), hits("reference_") if with_reference else {}
    metrics = {}
    for name, hit in ours.items():
        reference = float(theirs[name].mean()) if with_reference else None
        metrics[f"accuracy/{name}"] = Metric(float(hit.mean()), wilson_interval(int(hit.sum()), n), n, reference)
    if with_reference:
        same = samples["prediction"] == samples["reference_prediction"]
        metrics["accuracy/agreement"] = Metric(float(same.mean()), wilson_interval(int(same.sum()), n), n)
    reference_ece = calibration(samples["reference_confidence"], theirs["top1"]) if with_reference else None
    metrics["accuracy/ece"] = Metric(calibration(samples["confidence"], ours["top1"]), None, n, reference_ece)
    metrics["accuracy/brier"] = whole_metric(samples["brier"], samples.get("reference_brier"))
    return metrics


def calibration(confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error; NaN if a network has answered NaN, which is no reason to lose the other figures."""
    return expected_calibration_error(confidence, correct) if np.isfinite(confidence).all() else math.nan


def gather(batches: list[Columns]) -> Columns:
    """All ranks' per-sample values, sorted by index, the same on every rank; empty if no rank has any."""
    mine = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]} if batches else {}
    parts: list[Any] = [mine]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, mine)
    parts = [part for part in parts if part]
    if not parts:
        return {}
    everything = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(everything["index"], kind="stable")
    return {name: values[order] for name, values in everything.items()}
