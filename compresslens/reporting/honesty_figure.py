"""Draws the honesty panel: a small picture for each check of an attack."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compresslens.attacks.honesty.check import AXES, Check, Curve
from compresslens.reporting.palette import BLUE, GREEN, GREY, PURPLE, VERMILION

VERDICT_COLOURS = {"pass": GREEN, "warn": "#8A6500", "fail": VERMILION, "skipped": GREY}
STYLES = ((BLUE, "-", "o"), (VERMILION, "--", "D"), (PURPLE, ":", "s"))
SHARES = "share"  # axes whose label starts so go from 0 to 100 %
COLUMNS = 4
TITLES = {
    "deterministic": "The same answer twice",
    "gradients": "There are gradients",
    "descent": "The margin falls",
    "best_point": "Best point is returned",
    "unbounded": "Unbounded fools all",
    "noise": "Noise is much weaker",
    "black_box": "Square is not stronger",
    "apgd": "APGD is not stronger",
    "transfer": "Transfer is not stronger",
    "logit_scale": "Logit scale is irrelevant",
    "more_steps": "More steps are not worse",
    "rounding": "8 bits are enough",
}


def draw_honesty(checks: Sequence[Check], path: Path, title: str) -> None:
    """One panel per check: its verdict in the title, its curves, and below what was seen.

    Args:
        checks: at least one.
        path: the PNG to write.
        title: above all panels; long lines are broken.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = math.ceil(len(checks) / COLUMNS)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.06)
    figure = Figure(figsize=(4.2 * COLUMNS, 4.0 * rows + 1.2), dpi=110, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(textwrap.wrap(title, 150, max_lines=5, placeholder=" …")), fontsize=13)
    every = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, check in zip(every, checks, strict=False):
        _draw(axes, check)
    for axes in every[len(checks) :]:
        axes.set_visible(False)
    figure.savefig(path, format="png")


def _draw(axes: Any, check: Check) -> None:
    heading = f"{TITLES.get(check.name, check.name)}: {check.verdict.upper()}"
    axes.set_title(heading, fontsize=11, fontweight="bold", color=VERDICT_COLOURS[check.verdict])
    note = "\n".join(textwrap.wrap(check.reason, 46))
    if not check.curves:
        axes.set_axis_off()
        axes.text(0.5, 0.5, note, ha="center", va="center", fontsize=10, color=GREY, transform=axes.transAxes)
        return
    end = max((x for curve in check.curves for x in curve.x), default=0.0) or 1.0
    for curve, style in zip(check.curves, STYLES, strict=False):
        _line(axes, curve, style, end if check.x_label == AXES[0] else None)
    if check.name == "descent":
        axes.axhline(0, color=GREY, linewidth=0.8)
    if check.name == "best_point":
        axes.axline((0, 0), slope=1, color=GREY, linewidth=0.8)
    if check.y_label.startswith(SHARES):
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel(f"{check.x_label}\n\n{note}", fontsize=10)
    axes.set_ylabel(check.y_label, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(True, color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=True, framealpha=0.85, edgecolor="none", loc="best")


def _line(axes: Any, curve: Curve, style: tuple[str, str, str], end: float | None) -> None:
    """A line; with an end, a success curve becomes a staircase up to there. A few points get markers."""
    colour, dashes, marker = style
    x, y = np.array(curve.x), np.array(curve.y)
    staircase = False
    if end is not None and x[0] == 0:
        staircase = True
        x, y = np.append(x, end), np.append(y, y[-1])
    axes.plot(
        *(x, y, dashes),
        color=colour,
        drawstyle="steps-post" if staircase else "default",
        marker=marker if len(x) <= 5 and not staircase else "",
        markersize=6,
        linewidth=2,
        label=curve.label,
    )
