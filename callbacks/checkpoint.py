"""`checkpoints/best.ckpt` and `checkpoints/last.ckpt`, written atomically and free of paths."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from compresslens.errors import UserError
from compresslens.training import newest_checkpoint


class RunCheckpoint(Checkpoint):
    """What both have in common: the folder, and a save that leaves either the old file or the new one."""

    file_name: str

    def path(self, trainer: Any) -> Path:
        """Where the checkpoint is, on every rank."""
        return Path(trainer.default_root_dir) / "checkpoints" / self.file_name

    def save(self, trainer: Any) -> None:
        """Writes the checkpoint on rank zero; all ranks must call this.

        Raises:
            UserError: the weights are not finite (the file before stays), or the disk is full.
        """
        path = self.path(trainer)
        broken = [name for name, p in trainer.lightning_module.named_parameters() if not torch.isfinite(p).all()]
        if broken:
            raise UserError(
                f"{broken[0]} is not finite at step {trainer.global_step}; last good checkpoint: "
                f"{newest_checkpoint(path.parent)}; lower the learning rate"
            )
        temporary = path.with_suffix(".partial")
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
            if trainer.is_global_zero:
                os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)


class BestCheckpoint(RunCheckpoint):
    """Saves after a validation that is better than all before; at the end of a fit that had none, the last weights.

    A network that is still being compressed (the module's `compression_finished` is False) is no candidate.

    Args:
        monitor: name of the validation metric.
        mode: whether the greatest or the least value is best.
    """

    file_name = "best.ckpt"

    def __init__(self, monitor: str = "val/top1", mode: Literal["max", "min"] = "max") -> None:
        self.monitor = monitor
        self.mode = mode
        self.best = math.nan
        self._saved = False

    def on_validation_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Compares and saves."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        if not getattr(pl_module, "compression_finished", True):
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(f"BestCheckpoint: there is no metric {self.monitor!r} to monitor; there are: {known}")
        value = float(trainer.callback_metrics[self.monitor])
        better = value > self.best if self.mode == "max" else value < self.best
        if better or math.isnan(self.best):
            self.best, self._saved = value, True
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Saves what there is if there was no validation."""
        if is_last_epoch(trainer):
            self._save_unless_saved(trainer)

    def on_fit_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Saves what there is if there was no epoch."""
        if trainer.max_epochs == 0:
            self._save_unless_saved(trainer)

    def _save_unless_saved(self, trainer: Any) -> None:
        if not self._saved and not trainer.fast_dev_run:
            self._saved = True
            self.save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and whether there is a file."""
        return {"best": self.best, "saved": self._saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.best, self._saved = state_dict["best"], state_dict["saved"]


class LastCheckpoint(RunCheckpoint):
    """Saves between the epochs, every so many optimizer steps within them, and at the end; `--resume` starts from it.

    Args:
        every_n_steps: cadence within an epoch; 0: only between the epochs.
    """

    file_name = "last.ckpt"

    def __init__(self, every_n_steps: int = 200) -> None:
        if every_n_steps < 0:
            raise UserError("LastCheckpoint: every_n_steps must not be negative")
        self.every_n_steps = every_n_steps
        self._saved_at = 0
        self._stopped = False

    def on_fit_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Lets a fit that had been stopped early stay so."""
        trainer.should_stop = trainer.should_stop or self._stopped

    def on_train_batch_start(self, trainer: Any, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves before the next batch: all that belongs to the step before, or its epoch, has been done and logged."""
        step = trainer.global_step
        due = batch_idx == 0 or (self.every_n_steps and step % self.every_n_steps == 0)
        if due and step != self._saved_at and not trainer.fast_dev_run:
            self._saved_at = step
            with before_the_batch(trainer):
                self.save(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Saves after the last epoch's validation."""
        if is_last_epoch(trainer) and not trainer.fast_dev_run:
            self._stopped = trainer.should_stop
            self.save(trainer)

    def on_fit_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Counts the last epoch as complete, which Lightning does not if that was all that a checkpoint had left."""
        epochs = trainer.fit_loop.epoch_progress.current
        epochs.completed = epochs.processed

    def state_dict(self) -> dict[str, Any]:
        """Whether something has stopped the fit early."""
        return {"stopped": self._stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers it."""
        self._stopped = state_dict["stopped"]


def is_last_epoch(trainer: Any) -> bool:
    """Whether the fit ends with the epoch that is ending."""
    epochs = trainer.fit_loop.epoch_progress.current.processed
    done = 0 <= trainer.max_epochs <= epochs or 0 <= trainer.max_steps <= trainer.global_step
    return done or trainer.should_stop


@contextmanager
def before_the_batch(trainer: Any) -> Iterator[None]:
    """Within `on_train_batch_start`, sets the trainer's counters to where they were at the end of the batch before.

    There Lightning knows how to go on from: it adds one to the batches that are completed and to the loggers' step.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress

    def add(difference: int) -> None:
        loop._batches_that_stepped += difference
        for count in (progress.total, progress.current):
            count.ready += difference
            count.completed += difference

    add(-1)
    is_last, progress.is_last_batch = progress.is_last_batch, False
    try:
        yield
    finally:
        add(1)
        progress.is_last_batch = is_last
