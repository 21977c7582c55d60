"""What a run leaves behind for people: metrics as CSV, curves, W&B runs, summaries. The only place that knows wandb."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compresslens.reporting.metric import Metric

if TYPE_CHECKING:
    from compresslens.reporting.curves_logger import CurvesLogger
    from compresslens.reporting.wandb_logger import OfflineFirstWandbLogger

__all__ = ["CurvesLogger", "Metric", "OfflineFirstWandbLogger"]

LOGGERS = {"CurvesLogger": "curves_logger", "OfflineFirstWandbLogger": "wandb_logger"}


def __getattr__(name: str) -> Any:
    """Loggers are imported when they are needed: with them comes Lightning, which reports can do without."""
    if name in LOGGERS:
        return getattr(import_module(f"{__name__}.{LOGGERS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
