"""What the probes that look closely at a fixed set of images have in common."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl

from callbacks.probe_images import Share, in_turn
from callbacks.probe_state import undisturbed
from callbacks.results import Results
from compresslens import runs
from compresslens.errors import UserError
from compresslens.reporting.metric import Metric, finite
from compresslens.samples import Columns
from datamodules.selection import balanced_indices

Drawing = Callable[[Path], None]


@dataclass(frozen=True)
class Findings:
    """What a probe found out; on every rank the same.

    Attributes:
        metrics: by name.
        details: how it was measured; plain, finite values.
        columns: per-sample values for `samples.parquet`, with the "index" of each sample in its split.
        figures: by file name without its ending: what writes the PNG to the path that it gets.
        pages: by file name without its ending: what writes the HTML page to the path that it gets.
        arrays: by file name without its ending: what later reports draw from, arrays by name; stored as `.npz`.
        verdicts: what is said in words, by the group of metrics that it is about.
    """

    metrics: dict[str, Metric]
    details: dict[str, Any] = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)
    figures: dict[str, Drawing] = field(default_factory=dict)
    pages: dict[str, Drawing] = field(default_factory=dict)
    arrays: dict[str, Columns] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)


class Probe(pl.Callback, ABC):
    """Measures something on a fixed, class-balanced set of images at the end of a test (the one that ends a fit, too).

    Under `validate` the images are those of the validation split. A subclass defines :attr:`name` and :meth:`measure`.
    Whatever that does, flags, gradients and random states are put back afterwards, so that a fit that is probed goes on
    as one that is not.

    Args:
        samples: number of images; None: the data's own number (`data.probe_samples`). Smaller sets are part of larger.
        every_n_epochs: measure on the validation split, too, in the validations of every n-th epoch of a fit. That goes
            to the loggers (as `val/…`) and into `figures/`, not into `results.json`. None: not while fitting.
        time_budget: seconds after which no further images are begun; None: no limit.
    """

    name: str

    def __init__(
        self, samples: int | None = None, every_n_epochs: int | None = None, time_budget: float | None = None
    ) -> None:
        for option, value in (("samples", samples), ("every_n_epochs", every_n_epochs)):
            if value is not None and value < 1:
                raise UserError(f"{type(self).__name__}: {option} is {value}; it must be at least 1, or null")
        if time_budget is not None and not time_budget > 0:
            raise UserError(f"{type(self).__name__}: time_budget is {time_budget}; it must be positive, or null")
        self.samples = samples
        self.every_n_epochs = every_n_epochs
        self.time_budget = time_budget

    @abstractmethod
    def measure(self, module: Any, share: Share) -> Findings:
        """Measures this rank's share and gathers (`callbacks.accuracy.gather`), so that all ranks find the same.

        Called on all ranks, with all networks in eval mode, without autograd, inference mode and autocast.

        Args:
            module: the LightningModule, with its `model` and `reference`.
            share: the images.
        """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Complains at once, not after the fit, if there is nowhere to write to or nothing to look at."""
        Results.of(trainer)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "probe_indices"):
            raise UserError(f"{type(data).__name__} has no fixed images to probe: derive it from ImageDataModule")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures and records."""
        self._run(trainer, pl_module, "test")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures and records; within a fit, only if it is time."""
        if trainer.state.fn == "validate" or self._is_due(trainer):
            self._run(trainer, pl_module, "val")

    def state_dict(self) -> dict[str, Any]:
        """Nothing; but having it lets a probe that a config adds take the place of one of its class that is there."""
        return {}

    def _is_due(self, trainer: Any) -> bool:
        """Whether it is time, in a validation within a fit."""
        if trainer.state.fn != "fit" or self.every_n_epochs is None or trainer.sanity_checking or trainer.fast_dev_run:
            return False
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _run(self, trainer: Any, module: Any, split: Literal["val", "test"]) -> None:
        began = time.monotonic()
        data = trainer.datamodule
        if self.samples is None:
            indices = data.probe_indices(split)
        else:
            indices = balanced_indices(data.labels(split), self.samples, data.seed)
        indices = indices[in_turn(data.labels(split)[indices])]
        share = Share(
            data.dataset(split),
            indices,
            data.labels(split)[indices],
            trainer.global_rank,
            trainer.world_size,
            module.device,
            module.dtype,
            began + self.time_budget if self.time_budget is not None else math.inf,
            self.name if trainer.is_global_zero and trainer.progress_bar_callback is not None else None,
        )
        networks = [module] if module.reference is None else [module, module.reference]
        with undisturbed(networks, data.seed, module.device):
            findings = self.measure(module, share)
        in_fit = trainer.state.fn == "fit"
        if in_fit:
            values = {f"val/{name}": finite(metric.value) for name, metric in findings.metrics.items()}
            module.log_dict({name: value for name, value in values.items() if value is not None}, sync_dist=False)
        if trainer.is_global_zero:
            self._draw(trainer, findings, f"_epoch{trainer.current_epoch}" if in_fit else "")
        if not in_fit:
            results = Results.of(trainer)
            if len(findings.columns.get("index", ())):
                columns = {name: values for name, values in findings.columns.items() if name != "index"}
                results.record_samples(trainer, findings.columns["index"], columns)
            seconds = time.monotonic() - began
            results.record(trainer, self.name, findings.metrics, seconds, findings.details, findings.verdicts)

    def _draw(self, trainer: Any, findings: Findings, ending: str) -> None:
        folder = Path(trainer.default_root_dir) / "figures"
        for name, arrays in ({} if ending else findings.arrays).items():
            runs.write_atomically(folder / f"{name}.npz", partial(_write_arrays, arrays=arrays))
        for kind, drawings in (("png", findings.figures), ("html", findings.pages)):
            for name, draw in drawings.items():
                path = folder / f"{name}{ending}.{kind}"
                runs.write_atomically(path, draw)
                for logger in trainer.loggers:
                    if kind == "png" and hasattr(logger, "log_image"):
                        logger.log_image(name, [str(path)])
                    elif kind == "html" and hasattr(logger, "log_page"):
                        logger.log_page(f"{name}_page", path)


def _write_arrays(path: Path, arrays: Columns) -> None:
    with path.open("wb") as file:  # given a name, numpy would add an ending
        plain: dict[str, Any] = dict(arrays)
        np.savez_compressed(file, **plain)
