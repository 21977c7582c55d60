"""What the figures of an attack show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from compresslens.attacks.robustness import success_curve
from compresslens.reporting.attack_figure import Example, Fooled, amplification, draw_examples, draw_success


@pytest.mark.parametrize(
    ("largest", "factor"), [(0.6, 1), (0.5, 1), (0.26, 1), (0.25, 2), (0.01, 50), (1e-9, 1000), (0.0, 1)]
)
def test_amplification(largest: float, factor: int) -> None:
    perturbation = np.full((3, 4, 4), -largest)
    assert amplification([perturbation, np.zeros((3, 4, 4))]) == factor


def test_single_extremes_do_not_hide_the_rest() -> None:
    perturbation = np.full(10_000, 0.01)
    perturbation[0] = 0.5
    assert amplification([perturbation]) == 50


@pytest.mark.parametrize("channels", [1, 3])
def test_examples(tmp_path: Path, drawn: list[Figure], channels: int) -> None:
    image = np.full((channels, 6, 6), 0.5, dtype=np.float32)
    moved = image.copy()
    moved[:, 0, 0] += 0.125
    path = tmp_path / "examples.png"
    rows = [
        Example(image, "cat", [Fooled(moved, "tench, Tinca tinca", 0.125), Fooled(image, "cat", math.inf)]),
        Example(image, "dog", [Fooled(image, "dog", math.inf), Fooled(moved, "cat", 0.125)]),
    ]
    draw_examples(path, rows, ["model", "reference"], "an attack")
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert len(figure.axes) == 10
    captions = [axes.get_xlabel() for axes in figure.axes]
    assert captions[:5] == ["class cat", "L2 0.125", "predicted tench", "none found", "predicted cat"]
    assert captions[5:] == ["class dog", "none found", "predicted dog", "L2 0.125", "predicted cat"]
    headings = [axes.get_title() for axes in figure.axes]
    assert headings[:3] == ["original", "model\nperturbation × 2", "model\nadversarial"]
    assert headings[5:] == [""] * 5
    pictures = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert pictures[1][0, 0].tolist() == [0.75] * 3, "the factor is applied"
    assert pictures[1][1, 1].tolist() == [0.5] * 3, "and zero is grey"
    assert np.array_equal(pictures[2], moved.transpose(1, 2, 0).repeat(3 // channels, 2))
    assert np.array_equal(pictures[4], image.transpose(1, 2, 0).repeat(3 // channels, 2))


def test_success(tmp_path: Path, drawn: list[Figure]) -> None:
    ours, theirs = np.array([0.1, 0.2, 0.4, math.inf]), np.array([0.2, 0.5, math.inf, math.inf])
    draw_success(tmp_path / "success.png", ours, theirs, "an attack")
    (figure,) = drawn
    (axes,) = figure.axes
    model, reference = axes.lines
    for line, values in ((model, ours), (reference, theirs)):
        radii = np.asarray(line.get_xdata(), dtype=np.float64)
        assert radii[0] == 0
        assert radii[-1] == pytest.approx(1.05 * 0.5)
        assert np.asarray(line.get_ydata()).tolist() == pytest.approx((100 * success_curve(values, radii)).tolist())
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["model (median 0.3)", "reference (half or more not fooled)"]
    assert len(axes.collections) == 2, "a band each"
    assert model.get_linestyle() != reference.get_linestyle(), "without colours, too"


def test_an_attack_that_never_succeeds(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_success(tmp_path / "success.png", np.full(3, math.inf), None, "an attack")
    (line,) = drawn[0].axes[0].lines
    assert set(np.asarray(line.get_ydata())) == {0.0}
