"""Draws where networks look, and how well that agrees with where the objects are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compresslens.reporting.metric import Metric
from compresslens.reporting.palette import BLUE, GREY, VERMILION
from compresslens.reporting.pictures import as_picture, shortened

Floats = npt.NDArray[Any]
MAP, DIFFERENCE = "viridis", "PuOr"  # even steps look even; orange and purple differ for any kind of colour vision
OPACITY = 0.65  # of a map over its image
SIDE = 1.9  # inches of a picture
LIMITS = (0.1, 0.2, 0.5, 1.0)  # of the scale of differences
OF_CHANCE = ("pointing game", "energy in mask")  # the measures that are the object's share of the image by chance
STYLES = {"model": (BLUE, "o"), "reference": (VERMILION, "s")}


@dataclass(frozen=True)
class Look:
    """How a network sees an image.

    Attributes:
        map: H×W in [0, 1], for the image's class.
        probability: of the image's class.
        predicted: name of the class that the network names.
    """

    map: Floats
    probability: float
    predicted: str


@dataclass(frozen=True)
class Example:
    """A row of the figure.

    Attributes:
        image: C×H×W in [0, 1], C is 1 or 3.
        label: name of its class.
        mask: H×W bool, where the object is; None if nobody knows.
        looks: one for each network; two are compared.
        similarity: correlation of the two maps; NaN where it is not defined.
    """

    image: Floats
    label: str
    mask: Floats | None
    looks: Sequence[Look]
    similarity: float = math.nan


def draw_examples(path: Path, examples: Sequence[Example], networks: Sequence[str], title: str) -> None:
    """Image, mask, the map of each network, and the difference of the two, a row for each image.

    The outline of the object is drawn over the maps.

    Args:
        path: the PNG.
        examples: at least one; all of them with a mask, or none.
        networks: their names, in the order of `Example.looks`; one or two.
        title: above all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with_masks = examples[0].mask is not None
    columns = 1 + with_masks + len(networks) + (len(networks) == 2)
    figure = Figure(figsize=(columns * SIDE + 0.5, len(examples) * (SIDE + 0.3) + 1.1), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    grid = figure.subplots(len(examples), columns, squeeze=False)
    headings = ["image", *(["object"] if with_masks else []), *(f"{name}'s map" for name in networks)]
    headings += [f"{networks[1]} − {networks[0]}"] if len(networks) == 2 else []
    shown = difference = None
    limit = difference_limit(examples)
    for row, axes in zip(examples, grid, strict=True):
        picture = as_picture(row.image)
        panels = iter(axes)
        next(panels).imshow(picture, interpolation="nearest")
        axes[0].set_xlabel(f"class {shortened(row.label)}", fontsize=9)
        if row.mask is not None:
            next(panels).imshow(row.mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for look in row.looks:
            panel = next(panels)
            panel.imshow(picture.mean(2), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            shown = panel.imshow(look.map, cmap=MAP, vmin=0, vmax=1, alpha=OPACITY)
            _outline(panel, row.mask, "white")
            wrong = "" if look.predicted == row.label else f"\nsays {shortened(look.predicted)}"
            panel.set_xlabel(f"p = {look.probability:.2f}{wrong}", fontsize=9)
        if len(row.looks) == 2:
            change = row.looks[1].map - row.looks[0].map
            panel = next(panels)
            difference = panel.imshow(change, cmap=DIFFERENCE, vmin=-limit, vmax=limit)
            _outline(panel, row.mask, "black")
            defined = math.isfinite(row.similarity)
            panel.set_xlabel(f"r = {row.similarity:.2f}" if defined else "r not defined", fontsize=9)
    for axis in grid.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set(color=GREY, linewidth=0.5)
    for axis, heading in zip(grid[0], headings, strict=True):
        axis.set_title(heading, fontsize=10)
    of_maps = grid[:, 1 + with_masks : 1 + with_masks + len(networks)]
    bars: list[tuple[Any, Any, str]] = [(shown, of_maps, "of the map's maximum")]
    bars += [(difference, grid[:, -1:], "difference")] if len(networks) == 2 else []
    for mappable, axes, label in bars:
        aspect = 11 * axes.shape[1]  # so that both are as thick
        bar = figure.colorbar(mappable, ax=axes, location="bottom", shrink=0.8, pad=0.01, aspect=aspect)
        bar.ax.tick_params(labelsize=8)
        bar.set_label(label, fontsize=8)
        bar.locator = MaxNLocator(4)
        bar.update_ticks()
    of_two = "; r: correlation of the two maps" if len(networks) == 2 else ""
    outline = "; lines: outline of the object" if with_masks else ""
    figure.supxlabel(f"p: probability of the class{of_two}{outline}", fontsize=9)
    figure.savefig(path, format="png")


def difference_limit(examples: Sequence[Example]) -> float:
    """Where the scale of differences ends: so that the greatest one is seen, and figures remain comparable."""
    largest = max(
        (float(np.abs(row.looks[1].map - row.looks[0].map).max()) for row in examples if row.looks[1:]), default=1.0
    )
    return next((limit for limit in LIMITS if largest <= limit), LIMITS[-1])


def _outline(axes: Any, mask: Floats | None, colour: str) -> None:
    if mask is not None and mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=colour, linewidths=0.7)


def draw_localization(path: Path, measures: Mapping[str, Mapping[str, Metric]], area: float, title: str) -> None:
    """Measures of localization with their intervals, of networks and of maps that know nothing.

    Args:
        path: the PNG.
        measures: by the name of the measure, by the name of what was measured.
        area: mean share of an image that its object takes, in [0, 1].
        title: above all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(next(iter(measures.values())))
    figure = Figure(figsize=(3.4 * len(measures) + 1.2, 0.5 * len(names) + 1.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, (measure, values) in zip(panels, measures.items(), strict=True):
        for place, (name, metric) in enumerate(values.items()):
            colour, marker = STYLES.get(name, (GREY, "D"))
            low, high = metric.ci95 or (metric.value, metric.value)
            axes.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
            axes.plot(metric.value, place, marker, color=colour, markersize=7)
        if measure in OF_CHANCE:
            axes.axvline(area, color=GREY, linestyle=":", linewidth=1.2)
        axes.set_title(measure, fontsize=11)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names, fontsize=10)
        axes.grid(True, axis="x", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.supxlabel(
        f"mean and 95 % interval; dotted: share of the image that the object takes ({area:.2f})", fontsize=9
    )
    figure.savefig(path, format="png")
