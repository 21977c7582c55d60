"""Keeps the training curves exact over a resume, and draws them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from compresslens.reporting.curves_figure import draw_curves
from compresslens.reporting.curves_logger import CurvesLogger


class Curves(pl.Callback):
    """Draws `figures/training_curves.png` from `metrics.csv` at the end of a fit.

    A checkpoint remembers how many rows had been logged, so that a resumed run drops what the interrupted one logged
    after it.
    """

    def __init__(self) -> None:
        self._trainer: pl.Trainer | None = None
        self._rows: list[int] | None = None
        self._rewound = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remembers the trainer, whose loggers know the number of rows."""
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Rows logged so far."""
        return {"rows": [logger.rows for logger in self._loggers()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the numbers; a test of a checkpoint gets here, too, and must drop nothing."""
        self._rows = state_dict["rows"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drops the rows that were logged after the checkpoint (all rows if there was none)."""
        self._rewind(trainer)

    def on_fit_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Draws, and hands the picture to the loggers that take pictures."""
        if not self._rewound:  # the fit was complete and only its test is repeated
            self._rewind(trainer)
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        folder = Path(trainer.default_root_dir)
        picture = folder / "figures" / "training_curves.png"
        for curves in self._loggers()[:1]:
            curves.save()
            try:
                draw_curves(folder / "metrics.csv", picture, folder.parent.name)
            except (OSError, ValueError) as error:
                warnings.warn(f"no figure of the training curves: {error}", stacklevel=2)
                return
        for logger in trainer.loggers:
            if hasattr(logger, "log_image") and picture.is_file():
                logger.log_image("training_curves", [str(picture)])

    def _rewind(self, trainer: pl.Trainer) -> None:
        loggers = self._loggers()
        for logger, rows in zip(loggers, self._rows or [0] * len(loggers), strict=False):
            logger.rewind(rows, trainer.global_step)
        self._rewound = True

    def _loggers(self) -> list[CurvesLogger]:
        loggers = self._trainer.loggers if self._trainer is not None else []
        return [logger for logger in loggers if isinstance(logger, CurvesLogger)]
