"""Draws the learning curves of a run from its `metrics.csv`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compresslens import runs
from compresslens.reporting.palette import BLUE, GREY, VERMILION

TRAIN_LOSS = ("train/loss", "train/loss_step", "train/loss_epoch")
TRAIN_ACCURACY = ("train/top1", "train/accuracy", "train/acc")
SMOOTHING_SHARE = 0.05  # width of the moving average, as a share of the points


class Series:
    """The values of one metric.

    Attributes:
        x: epochs or steps, ascending.
        y: values.
    """

    def __init__(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        self.x = x
        self.y = y

    def __len__(self) -> int:
        return len(self.y)


def draw_curves(csv_path: Path, png_path: Path, title: str) -> bool:
    """Loss on the left, accuracy on the right, over the epochs (or steps, if the file knows no epochs).

    Args:
        csv_path: what :class:`~compresslens.reporting.curves_logger.CurvesLogger` wrote.
        png_path: the figure, written atomically.
        title: above both panels.

    Returns:
        Whether there was anything to draw; no figure is written otherwise.

    Raises:
        FileNotFoundError: no such CSV.
    """
    curves, x_label = read_curves(Path(csv_path))
    train_loss = _first(curves, TRAIN_LOSS)
    train_top1 = _first(curves, TRAIN_ACCURACY)
    val_loss, val_top1 = curves.get("val/loss"), curves.get("val/top1")
    drawn = [series for series in (train_loss, val_loss, train_top1, val_top1) if series is not None]
    if not drawn:
        return False

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 5), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08, wspace=0.06))
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14)
    left, right = figure.subplots(1, 2)

    if train_loss is not None:
        _draw_training(left, train_loss, "training loss")
    if val_loss is not None:
        _draw_validation(left, val_loss, "validation loss", np.nanargmin, "lowest", "{:.3g}")
    left.set_ylabel("loss", fontsize=12)
    _limit_loss(left, [s for s in (train_loss and Series(train_loss.x, smooth(train_loss.y)), val_loss) if s])

    if train_top1 is not None:
        _draw_training(right, _percent(train_top1), "training top-1")
    if val_top1 is not None:
        _draw_validation(right, _percent(val_top1), "validation top-1", np.nanargmax, "best", "{:.1f} %")
    right.set_ylabel("top-1 accuracy (%)", fontsize=12)
    low, high = right.get_ylim()
    right.set_ylim(max(low, -1), min(high, 101))

    for axes in (left, right):
        axes.set_xlabel(x_label, fontsize=12)
        axes.set_xlim(0, 1.02 * max(series.x[-1] for series in drawn))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.tick_params(labelsize=11)
        axes.grid(True, color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.has_data():
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=11, frameon=False)
        else:
            axes.text(0.5, 0.5, "nothing logged", ha="center", va="center", color=GREY, transform=axes.transAxes)
    runs.write_atomically(Path(png_path), lambda temporary: figure.savefig(temporary, format="png"))
    return True


def read_curves(csv_path: Path) -> tuple[dict[str, Series], str]:
    """The training and validation metrics of a `metrics.csv`, and what their x is.

    The number of steps in an epoch is not in the file. The last validation of an epoch is logged with its last step,
    so the largest (step + 1) / (epoch + 1) is that number.
    """
    rows: dict[str, list[tuple[int, float]]] = {}
    steps_per_epoch, epochs_known = 0.0, True
    with csv_path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row["name"]
            if not name.startswith(("train/", "val/")) or not row["step"]:
                continue
            step = int(row["step"])
            rows.setdefault(name, []).append((step, float(row["value"])))
            if row["epoch"]:
                steps_per_epoch = max(steps_per_epoch, (step + 1) / (int(row["epoch"]) + 1))
            else:
                epochs_known = False
    scale = 1 / steps_per_epoch if epochs_known and steps_per_epoch else 1.0
    curves = {}
    for name, points in rows.items():
        points.sort(key=lambda point: point[0])
        x, y = np.array(points, dtype=np.float64).T
        curves[name] = Series((x + 1) * scale, y)
    return curves, "epoch" if epochs_known else "training step"


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving average over what there is of its window; what is not finite is left out.

    Args:
        values: N numbers.

    Returns:
        N numbers.
    """
    half = int(len(values) * SMOOTHING_SHARE / 2)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    position = np.arange(len(values))
    low, high = np.maximum(position - half, 0), np.minimum(position + half + 1, len(values))
    with np.errstate(invalid="ignore"):
        return (sums[high] - sums[low]) / (counts[high] - counts[low])


def _first(curves: dict[str, Series], names: tuple[str, ...]) -> Series | None:
    return next((curves[name] for name in names if name in curves), None)


def _percent(series: Series) -> Series:
    return Series(series.x, 100 * series.y)


def _draw_training(axes: Any, series: Series, label: str) -> None:
    smoothed = smooth(series.y)
    if len(series) >= 40:
        axes.plot(series.x, series.y, color=BLUE, alpha=0.25, linewidth=0.8)
        label = f"{label} (smoothed; faint: raw)"
    axes.plot(series.x, smoothed, color=BLUE, linewidth=2, marker="" if len(series) > 1 else "o", label=label)


def _draw_validation(axes: Any, series: Series, label: str, best_of: Any, adjective: str, form: str) -> None:
    marker = "o" if len(series) <= 40 else ""
    if np.isfinite(series.y).any():
        best = int(best_of(np.where(np.isfinite(series.y), series.y, np.nan)))
        label = f"{label} ({adjective} {form.format(series.y[best])})"
        axes.plot(series.x[best], series.y[best], "o", markersize=10, fillstyle="none", color=VERMILION, zorder=4)
    axes.plot(series.x, series.y, "--", color=VERMILION, linewidth=2, marker=marker, markersize=4, label=label)


def _limit_loss(axes: Any, drawn: list[Series]) -> None:
    """Fits the axis to the smooth curves, so that single raw spikes do not flatten everything else."""
    values = np.concatenate([series.y for series in drawn]) if drawn else np.empty(0)
    values = values[np.isfinite(values)]
    if len(values):
        low, high = float(values.min()), float(values.max())
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
        axes.set_ylim(low - margin, high + margin)
