"""The figures of a report, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compresslens.attacks.robustness import success_band, success_curve
from compresslens.reporting.palette import BLUE, VERMILION
from compresslens.reporting.pictures import literal, shortened
from compresslens.reporting.tsne_figure import COLOURS, MARKERS, draw_map
from compresslens.samples import Floats

RADII = 200
NAMED = 40  # models that a legend has room for


def pareto(points: Mapping[str, tuple[float, float]], references: Sequence[tuple[float, float]], label: str) -> bytes:
    """Accuracy against what it costs; models that no other beats in both are joined by a line.

    Args:
        points: cost and top-1 accuracy by the name of the model.
        references: of the networks that they came from.
        label: of the cost.
    """
    from matplotlib.ticker import LogFormatter

    figure, axes = _canvas(6.4, 4.4)
    for place, (name, (cost, accuracy)) in enumerate(points.items()):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)]
        axes.scatter(cost, 100 * accuracy, s=70, color=colour, marker=marker, label=literal(name), zorder=3)
    for number, (cost, accuracy) in enumerate(references):
        label_once = "reference" if number == 0 else None
        axes.scatter(cost, 100 * accuracy, s=90, marker="*", color="#555555", label=label_once, zorder=2)
    front = pareto_front(list(points.values()) + list(references))
    axes.plot([cost for cost, _ in front], [100 * accuracy for _, accuracy in front], color="#999999", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(LogFormatter())  # 50, not 5 × 10¹
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.set_xlabel(label)
    axes.set_ylabel("top-1 accuracy (%)")
    axes.grid(True, which="both", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    if len(points) <= NAMED:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return _png(figure)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (cost, accuracy) that no other beats in one without losing in the other, by their cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def success(pairs: Mapping[str, tuple[Floats, Floats | None]], farthest: float) -> bytes:
    """Share of images that are fooled within each distance, with a bootstrap band: a panel for each model.

    Args:
        pairs: by the name of the model its distances and its reference's, of the same images.
        farthest: distance that is shown.
    """
    figure, panels = _panels(len(pairs), 3.6, 3.2, sharex=True, sharey=True)
    radii = np.linspace(0, 1.02 * max(farthest, 1e-9), RADII)
    for axes, (name, (ours, theirs)) in zip(panels, pairs.items(), strict=True):
        curves = [(ours, BLUE, "-", "model")] + ([] if theirs is None else [(theirs, VERMILION, "--", "reference")])
        for found, colour, line, label in curves:
            low, high = success_band(found, radii, n_resamples=300)
            axes.fill_between(radii, 100 * low, 100 * high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(radii, 100 * success_curve(found, radii), line, color=colour, linewidth=1.8, label=label)
        axes.set_title(f"{literal(name)} ({len(ours)} images)", fontsize=9)
        axes.set_xlim(0, radii[-1])
        axes.set_ylim(-1, 101)
        axes.grid(True, color="#E5E5E5", linewidth=0.7)
        axes.legend(loc="lower right", fontsize=8, frameon=False)
    figure.supxlabel("L2 distance of the perturbation (pixels in [0, 1])", fontsize=9)
    figure.supylabel("images fooled (%)", fontsize=9)
    return _png(figure)


def reliability_diagrams(pairs: Mapping[str, tuple[Floats, Floats | None]]) -> bytes:
    """Accuracy against confidence: a panel for each model, with its reference.

    Args:
        pairs: by the name of the model the points of model and reference, from
            `compresslens.study.calibration.reliability`.
    """
    figure, panels = _panels(len(pairs), 3.6, 3.4, sharex=True, sharey=True)
    for axes, (name, (ours, theirs)) in zip(panels, pairs.items(), strict=True):
        axes.plot([0, 100], [0, 100], color="#999999", linewidth=1, label="as sure as right")
        curves = [(ours, BLUE, "-", "o", "model")]
        curves += [] if theirs is None else [(theirs, VERMILION, "--", "D", "reference")]
        for found, colour, line, marker, label in curves:
            confidence, accuracy, low, high = 100 * found.T[:4]
            bars = np.maximum([accuracy - low, high - accuracy], 0)
            style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "elinewidth": 0.8}
            axes.errorbar(confidence, accuracy, bars, label=label, linewidth=1.5, **style)
        axes.set_title(literal(name), fontsize=9)
        axes.grid(True, color="#E5E5E5", linewidth=0.7)
        axes.legend(loc="lower right", fontsize=8, frameon=False)
    figure.supxlabel("confidence (%)", fontsize=9)
    figure.supylabel("accuracy (%)", fontsize=9)
    return _png(figure)


def maps(
    positions: Mapping[str, Floats],
    labels: Mapping[str, npt.NDArray[np.int64]],
    wrong: Mapping[str, npt.NDArray[np.bool_]],
    class_names: Sequence[str],
    window: tuple[Floats, Floats],
) -> bytes:
    """t-SNE maps side by side, with the same colours and axes.

    Args:
        positions: N×2 by the name of the model.
        labels: N, likewise.
        wrong: N, likewise; those images get a ring.
        class_names: of all classes.
        window: least and greatest position, 2 numbers each.
    """
    figure, panels = _panels(len(positions), 3.4, 3.6)
    low, high = window
    room = 0.05 * max(float((high - low).max()), 1e-9)
    for axes, name in zip(panels, positions, strict=True):
        draw_map(axes, positions[name], labels[name], wrong[name], class_names, size=7)
        axes.set_title(literal(name), fontsize=9)
        axes.set_xlim(low[0] - room, high[0] + room)
        axes.set_ylim(low[1] - room, high[1] + room)
    return _png(figure)


def looks(examples: Mapping[str, Mapping[str, npt.NDArray[Any]]], class_names: Sequence[str]) -> bytes:
    """The same images, and where each model looks for their class: a row for each model.

    Args:
        examples: by the name of the model: "image" N×H×W×3 uint8, "label" N, "what" N×H×W uint8 (the maps) and
            "predicted" N; all of the same images.
        class_names: of all classes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = next(iter(examples.values()))
    columns = len(first["label"])
    figure = Figure(figsize=(1.35 * columns + 2.4, 1.5 * (len(examples) + 1)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(len(examples) + 1, columns, squeeze=False)
    for axes, image, label in zip(grid[0], first["image"], first["label"], strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(shortened(class_names[label]), fontsize=8)
    for line, (name, found) in zip(grid[1:], examples.items(), strict=True):
        for axes, image, of_image, label, said in zip(
            line, found["image"], found["what"], found["label"], found["predicted"], strict=True
        ):
            axes.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.imshow(of_image, cmap="viridis", vmin=0, vmax=255, alpha=0.65)
            if said != label:
                axes.set_xlabel(f"says {shortened(class_names[said])}", fontsize=7)
        line[0].set_ylabel(literal(name), fontsize=8, rotation=0, ha="right", va="center")
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return _png(figure)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    figure, (axes,) = _panels(1, width, height)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _panels(count: int, width: float, height: float, **options: Any) -> tuple[Any, list[Any]]:
    """A figure with so many panels of a size in inches, in rows of four."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(lines, columns, squeeze=False, **options).flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
