"""The pictures of `shortcut.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compresslens.cams.similarity import pearson_correlation
from compresslens.reporting.cam_figure import Example, Look, draw_examples
from compresslens.reporting.palette import BLUE, GREY, VERMILION

COLOURS = {"control": BLUE, "shortcut": VERMILION}
STEP = 200  # scenes come in the order of their classes, 100 each


def draw_maps(path: Path, data: Any, looks: dict[str, Any]) -> None:
    """The first scene of every other class, unselected, with the maps of both networks."""
    rows = range(0, len(data), STEP)
    similarity = pearson_correlation(*(of.maps[rows] for of in looks.values()))
    examples = [
        Example(
            image=data.images[row].numpy() / 255,
            label=str(data.targets[row]),
            mask=data.masks[row].numpy(),
            looks=[
                Look(of.maps[row].numpy(), float(of.probability[row]), str(of.predicted[row])) for of in looks.values()
            ],
            similarity=float(alike),
        )
        for row, alike in zip(rows, similarity, strict=True)
    ]
    draw_examples(path, examples, list(looks), "Digits on their class's background (Grad-CAM)")
    with Image.open(path) as picture:  # a quarter of the bytes; no colour is off by more than a few percent
        few_colours = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=5)
    few_colours.save(path, optimize=True)


def draw_energy(path: Path, looks: dict[str, Any], figures: dict[str, Any]) -> None:
    """Energy in mask of each image with the shortcut, and the paired change on each kind of background."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    highest = max(of.energy.max() for of in looks.values())
    edges = np.linspace(0, highest, 41)
    for name, of in looks.items():
        mean, right_share = of.energy.mean(), of.right.mean()
        left.hist(of.energy, edges, histtype="stepfilled", color=COLOURS[name], alpha=0.25)
        label = f"{name}: mean {mean:.3f}, accuracy {right_share:.3f}"
        left.hist(of.energy, edges, histtype="step", color=COLOURS[name], linewidth=1.8, label=label)
        left.axvline(mean, color=COLOURS[name], linewidth=1.2, linestyle="--")
    area = figures["shortcut"]["mask_area"]
    left.axvline(area, color=GREY, linestyle=":", linewidth=1.6, label=f"object's share of the image ({area:.3f})")
    left.set_title(f"{len(looks['control'].energy):,} images with the shortcut", fontsize=11)
    left.set_xlabel("energy in mask")
    left.set_ylabel("images")
    left.set_ylim(top=1.35 * left.get_ylim()[1])
    left.legend(fontsize=8, frameon=False, loc="upper right")
    for place, measures in enumerate(figures.values()):
        for offset, measure, marker in ((-0.12, "energy", "o"), (0.12, "energy_of_predicted", "D")):
            change = measures[measure]["change"]
            label = {"energy": "true class", "energy_of_predicted": "predicted class"}[measure]
            colour = VERMILION if measure == "energy" else GREY
            right.plot(change["ci95"], [place + offset] * 2, color=colour, linewidth=2.5, solid_capstyle="round")
            right.plot(
                change["value"], place + offset, marker, color=colour, markersize=6, label=None if place else label
            )
    right.axvline(0, color=GREY, linewidth=1)
    right.set_xlim(right=0.1 * -right.get_xlim()[0])
    right.set_yticks(range(len(figures)), list(figures))
    right.set_ylim(len(figures) - 0.5, -0.5)
    right.set_title("change of energy in mask, shortcut − control", fontsize=11)
    right.set_xlabel("mean of pairs and 95 % interval, by background")
    right.legend(fontsize=8, frameon=False, loc="upper right")
    right.tick_params(axis="y", length=0)
    for axes in (left, right):
        axes.grid(True, axis="x", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
