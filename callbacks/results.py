"""`results.json` and `samples.parquet` of a run."""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import yaml

from compresslens import runs
from compresslens.errors import UserError
from compresslens.reporting.metric import Metric

SCHEMA = 1
PACKAGES = (
    *("compresslens", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "timm", "wandb"),
    *("neural-compressor", "torchattacks", "numpy"),
)


class Results(pl.Callback):
    """Collects what the probes measure; writes after each, so that a later failure loses nothing.

    What is collected is of one split. With the first figure of another one, that of the one before is forgotten.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}
        self.wall_seconds: dict[str, float] = {}
        self.details: dict[str, dict[str, Any]] = {}
        self.verdicts: dict[str, str] = {}
        self.samples: dict[str, npt.NDArray[Any]] = {}
        self._split: str | None = None
        self._fit_seconds_before = 0.0
        self._fit_started: float | None = None

    @staticmethod
    def of(trainer: pl.Trainer) -> Results:
        """The trainer's Results callback.

        Raises:
            UserError: it has none.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Results):
                return callback
        raise UserError("the probes need callbacks.Results among trainer.callbacks to write to")

    def record(
        self,
        trainer: pl.Trainer,
        probe: str,
        metrics: dict[str, Metric],
        seconds: float,
        details: dict[str, Any] | None = None,
        verdicts: dict[str, str] | None = None,
    ) -> None:
        """Adds the metrics of a probe and writes `results.json` and the loggers (rank zero only).

        Args:
            trainer: whose run folder is written to.
            probe: its name.
            metrics: by name.
            seconds: that it took.
            details: how it was measured, for readers rather than for comparisons; plain, finite values.
            verdicts: what it says in words, by the group of metrics that it is about.
        """
        if not trainer.is_global_zero:
            return
        self._forget_other_split(trainer)
        self.metrics.update(metrics)
        self.wall_seconds[probe] = round(seconds, 3)
        if details is not None:
            self.details[probe] = details
        self.verdicts.update(verdicts or {})
        for logger in trainer.loggers:
            values = {name: metric.value for name, metric in metrics.items()}
            logger.log_metrics(values, step=trainer.global_step)
        self.write(trainer)

    def record_samples(self, trainer: pl.Trainer, index: npt.NDArray[np.int64], columns: dict[str, Any]) -> None:
        """Adds per-sample columns, joined to those already there by the sample's index (rank zero only)."""
        if not trainer.is_global_zero:
            return
        import pandas as pd

        self._forget_other_split(trainer)
        frame = pd.DataFrame(columns, index=pd.Index(index, name="index"))
        path = Path(trainer.default_root_dir) / "samples.parquet"
        if self.samples:
            known = pd.DataFrame({k: v for k, v in self.samples.items() if k != "index"}, index=self.samples["index"])
            frame = known.drop(columns=frame.columns, errors="ignore").join(frame, how="outer")
        frame = frame.rename_axis("index").sort_index()
        self.samples = {"index": frame.index.to_numpy(), **{str(name): frame[name].to_numpy() for name in frame}}
        runs.write_atomically(path, lambda temporary: frame.reset_index().to_parquet(temporary, index=False))

    def write(self, trainer: pl.Trainer) -> None:
        """Writes `results.json` as it stands."""
        folder = Path(trainer.default_root_dir)
        config_path = folder / "config.yaml"
        config = yaml.safe_load(config_path.read_text(encoding="utf-8")) if config_path.is_file() else None
        # YAML has infinities and dates, JSON has not.
        config = json.loads(json.dumps(config, default=str), parse_constant=str)
        content = {
            "schema": SCHEMA,
            "name": folder.parent.name,
            "split": split_of(trainer),
            "seed": config.get("seed_everything") if config else None,
            "metrics": {name: metric.as_json() for name, metric in sorted(self.metrics.items())},
            "precision": trainer.precision,
            "wall_seconds": self.wall_seconds,
            "details": self.details,
            "verdicts": self.verdicts,
            "versions": versions(),
            "config": config,
        }
        runs.write_json(folder / "results.json", content)

    def _forget_other_split(self, trainer: pl.Trainer) -> None:
        if self._split not in (None, split_of(trainer)):
            self.metrics, self.details, self.verdicts, self.samples = {}, {}, {}, {}
            self.wall_seconds = {name: seconds for name, seconds in self.wall_seconds.items() if name == "fit"}
            (Path(trainer.default_root_dir) / "samples.parquet").unlink(missing_ok=True)
        self._split = split_of(trainer)

    # The time of the fit, over all the processes that a resumed fit was spread over ---------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._fit_started = time.monotonic()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock."""
        self.wall_seconds["fit"] = round(self._fit_seconds(), 3)

    def state_dict(self) -> dict[str, Any]:
        """Seconds of the fit so far."""
        return {"fit_seconds": self._fit_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues to count from there."""
        self._fit_seconds_before = state_dict["fit_seconds"]

    def _fit_seconds(self) -> float:
        running = time.monotonic() - self._fit_started if self._fit_started is not None else 0.0
        return self._fit_seconds_before + running


def split_of(trainer: pl.Trainer) -> str:
    """The split that is being evaluated."""
    return "val" if trainer.state.fn == "validate" else "test"


def versions() -> dict[str, str]:
    """Installed versions of what the figures depend on, and the commit where this is a checkout."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if (commit := runs.commit()) is not None:
        found["commit"] = commit
    return found
