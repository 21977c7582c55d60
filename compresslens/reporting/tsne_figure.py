"""Draws t-SNE maps of the same images side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Okabe and Ito's colours without the yellow, which is too light for dots; classes beyond them differ by their marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
NAMED = 30  # classes at most whose names are in the map
ROOM = 0.06  # around the map, as a share of its size


@dataclass(frozen=True)
class FeatureMap:
    """The map of one network.

    Attributes:
        name: of the network.
        positions: N×2.
        predicted: N classes.
        knn_accuracy: of the features; NaN if it was not measured.
        trustworthiness: of the map; likewise.
    """

    name: str
    positions: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.int64]
    knn_accuracy: float
    trustworthiness: float

    @property
    def quality(self) -> str:
        """For the title."""
        measures = {"kNN accuracy of features": self.knn_accuracy, "trustworthiness": self.trustworthiness}
        return ", ".join(f"{name} {value:.3f}" for name, value in measures.items() if math.isfinite(value))


@dataclass(frozen=True)
class Maps:
    """Maps of the same images.

    Attributes:
        maps: one or two, the reference's first.
        index: N, of the images in their split.
        labels: N classes.
        class_names: of all classes.
        thumbnails: N×h×w×3 uint8.
        cka: of the two networks' features; None if there is one network, NaN if it is not defined.
    """

    maps: Sequence[FeatureMap]
    index: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    class_names: Sequence[str]
    thumbnails: npt.NDArray[np.uint8]
    cka: float | None

    @property
    def title(self) -> str:
        """Above all."""
        alike = "" if self.cka is None or not math.isfinite(self.cka) else f"; CKA of the features {self.cka:.3f}"
        return f"t-SNE of {len(self.labels)} images' features{alike}"

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top of all maps, with some room."""
        everything = np.concatenate([drawn.positions for drawn in self.maps])
        low, high = everything.min(0), everything.max(0)
        room = ROOM * max(float((high - low).max()), 1e-9)
        return float(low[0] - room), float(high[0] + room), float(low[1] - room), float(high[1] + room)


def style(place: int) -> tuple[str, str]:
    """Colour and marker of a class, by its place among the classes."""
    return COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)]


def draw_maps(path: Path, maps: Maps) -> None:
    """Maps with the same axes and colours; what a network gets wrong has a ring.

    Args:
        path: the PNG.
        maps: see there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(6.2 * len(maps.maps), 7.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(maps.title, fontsize=14)
    panels: Any = figure.subplots(1, len(maps.maps), sharex=True, sharey=True, squeeze=False)[0]
    left, right, bottom, top = maps.bounds
    size = float(np.clip(9000 / len(maps.labels), 8, 40))
    for axes, drawn in zip(panels, maps.maps, strict=True):
        wrong = drawn.predicted != maps.labels
        draw_map(axes, drawn.positions, maps.labels, wrong, maps.class_names, size)
        axes.set_title(f"{drawn.name}\n{drawn.quality}", fontsize=11)
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_xlabel(f"{int(wrong.sum())} of {len(wrong)} misclassified", fontsize=10)
    ring = Line2D([], [], marker="o", linestyle="none", markerfacecolor="none", markeredgecolor="#222222", markersize=9)
    figure.legend([ring], ["misclassified"], loc="outside lower center", frameon=False, fontsize=10)
    figure.savefig(path, format="png")


def draw_map(
    axes: Any,
    positions: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    wrong: npt.NDArray[np.bool_],
    class_names: Sequence[str],
    size: float,
) -> None:
    """One map.

    Args:
        axes: matplotlib's.
        positions: N×2.
        labels: N classes.
        wrong: N, what gets a ring.
        class_names: of all classes; those of up to 30 classes are in the map.
        size: of the dots, in square points.
    """
    classes = np.unique(labels)
    for place, label in enumerate(classes):
        colour, marker = style(place)
        axes.scatter(*positions[labels == label].T, s=size, c=colour, marker=marker, alpha=0.7, linewidths=0)
    axes.scatter(*positions[wrong].T, s=3.5 * size, facecolors="none", edgecolors="#222222", linewidths=0.9)
    for label in classes if len(classes) <= NAMED else ():
        middle = np.median(positions[labels == label], axis=0)
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
        name = class_names[label].split(",")[0][:18]
        axes.text(*middle, name, ha="center", va="center", fontsize=10, bbox=box, parse_math=False)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#BBBBBB")
