"""What a run leaves behind for people: metrics as CSV, curves, W&B runs, summaries. The only place that knows wandb."""

from compresslens.reporting.curves_logger import CurvesLogger
from compresslens.reporting.metric import Metric
from compresslens.reporting.wandb_logger import OfflineFirstWandbLogger

__all__ = ["CurvesLogger", "Metric", "OfflineFirstWandbLogger"]
