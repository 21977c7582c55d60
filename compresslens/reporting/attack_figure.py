"""Draws what an attack found: some adversarials, and how many images are fooled within each distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compresslens.attacks.robustness import success_band, success_curve
from compresslens.reporting.palette import BLUE, VERMILION
from compresslens.reporting.pictures import as_picture, shortened

Floats = npt.NDArray[Any]
FACTORS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
SHOWN = 0.995  # share of a perturbation's values that the amplified picture must not clip
RADII = 400


@dataclass(frozen=True)
class Fooled:
    """What became of an image.

    Attributes:
        adversarial: C×H×W in [0, 1]; the image itself where the attack failed.
        predicted: name of the class that the network sees in it.
        l2: distance from the image, infinite where the attack failed.
    """

    adversarial: Floats
    predicted: str
    l2: float


@dataclass(frozen=True)
class Example:
    """A row of the figure.

    Attributes:
        image: C×H×W in [0, 1], C is 1 or 3.
        label: name of its class, which all networks predict.
        fooled: one for each network.
    """

    image: Floats
    label: str
    fooled: Sequence[Fooled]


def draw_examples(path: Path, examples: Sequence[Example], networks: Sequence[str], title: str) -> None:
    """Original, amplified perturbation and adversarial of each network, a row for each image.

    All perturbations are amplified by the same factor, around grey, so that they can be compared; it is in the
    headings.

    Args:
        path: the PNG.
        examples: at least one.
        networks: their names, in the order of `Example.fooled`.
        title: above all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    factor = amplification([fooled.adversarial - row.image for row in examples for fooled in row.fooled])
    columns, side = 1 + 2 * len(networks), 2.1
    figure = Figure(
        figsize=(columns * side, (len(examples) + 0.25) * (side + 0.35) + 0.4), dpi=120, layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}; distances in [0, 1] pixel units", fontsize=13)
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for number, (row, axes) in enumerate(zip(examples, grid, strict=True)):
        _show(axes[0], row.image, "original" if number == 0 else "", f"class {row.label}")
        for place, (network, fooled) in enumerate(zip(networks, row.fooled, strict=True)):
            amplified = 0.5 + factor * (fooled.adversarial - row.image)
            failed = not np.isfinite(fooled.l2)
            heading = f"{network}\nperturbation × {factor}" if number == 0 else ""
            _show(axes[1 + 2 * place], amplified, heading, "none found" if failed else f"L2 {fooled.l2:.3g}")
            heading = f"{network}\nadversarial" if number == 0 else ""
            _show(axes[2 + 2 * place], fooled.adversarial, heading, f"predicted {fooled.predicted}")
    figure.savefig(path, format="png")


def draw_success(path: Path, l2: Floats, reference_l2: Floats | None, title: str) -> None:
    """Share of images that are fooled within each distance, with a pointwise 95 % bootstrap band.

    Args:
        path: the PNG.
        l2: N distances of the model's nearest adversarials, infinite where the attack failed; at least one.
        reference_l2: the reference's, of the same images, or None.
        title: above all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    curves = [("model", l2, BLUE, "-")]
    if reference_l2 is not None:
        curves.append(("reference", reference_l2, VERMILION, "--"))
    found = np.concatenate([values[np.isfinite(values)] for _, values, _, _ in curves])
    radii = np.linspace(0, 1.05 * found.max() if len(found) and found.max() else 1.0, RADII)
    for name, values, colour, line in curves:
        low, high = success_band(values, radii)
        axes.fill_between(radii, 100 * low, 100 * high, color=colour, alpha=0.18, linewidth=0)
        median = float(np.median(values))
        label = f"{name} (median {median:.3g})" if np.isfinite(median) else f"{name} (half or more not fooled)"
        axes.plot(radii, 100 * success_curve(values, radii), line, color=colour, linewidth=2, label=label)
    axes.set_title(title, fontsize=13)
    axes.set_xlabel("L2 distance of the perturbation (pixels in [0, 1])", fontsize=12)
    axes.set_ylabel(f"images fooled (% of {len(l2)})", fontsize=12)
    axes.set_xlim(0, radii[-1])
    axes.set_ylim(-1, 101)
    axes.tick_params(labelsize=11)
    axes.grid(True, color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=11, frameon=False, title="band: 95 % bootstrap interval")
    figure.savefig(path, format="png")


def amplification(perturbations: Sequence[Floats]) -> int:
    """The greatest of `FACTORS` by which nearly all values can be multiplied without leaving [-0.5, 0.5]."""
    values = np.abs(np.concatenate([np.ravel(perturbation) for perturbation in perturbations]))
    largest = float(np.quantile(values[values > 0], SHOWN)) if (values > 0).any() else 0.5
    return next((factor for factor in reversed(FACTORS) if factor * largest <= 0.5), 1)


def _show(axes: Any, picture: Floats, heading: str, caption: str) -> None:
    axes.imshow(as_picture(picture), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(heading, fontsize=10)
    axes.set_xlabel(shortened(caption), fontsize=10)
