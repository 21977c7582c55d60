"""What the figures of class activation maps show."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from compresslens.reporting.cam_figure import (
    Example,
    Look,
    difference_limit,
    draw_examples,
    draw_localization,
)
from compresslens.reporting.metric import Metric
from compresslens.reporting.pictures import shortened


def ramp(start: float, end: float) -> Any:
    return np.tile(np.linspace(start, end, 6), (6, 1))


def square() -> Any:
    mask = np.zeros((6, 6), dtype=bool)
    mask[2:4, 2:5] = True
    return mask


def array(axes: Any, number: int = 0) -> Any:
    return np.asarray(axes.images[number].get_array())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_for_each_image(tmp_path: Path, drawn: list[Figure], channels: int) -> None:
    image = np.linspace(0, 1, channels * 36, dtype=np.float32).reshape(channels, 6, 6)
    rows = [
        Example(
            image, "tench, Tinca", square(), [Look(ramp(0, 1), 0.25, "dog"), Look(ramp(1, 0), 0.5, "tench, Tinca")], 0.5
        ),
        Example(image, "dog", np.zeros((6, 6), bool), [Look(ramp(0, 0), 1.0, "dog"), Look(ramp(0, 1), 1.0, "dog")]),
    ]
    path = tmp_path / "examples.png"
    draw_examples(path, rows, ["reference", "model"], "maps")
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    panels, bars = figure.axes[:10], figure.axes[10:]
    headings = [axes.get_title() for axes in panels]
    assert headings == ["image", "object", "reference's map", "model's map", "model − reference", *[""] * 5]
    captions = [axes.get_xlabel() for axes in panels]
    assert captions[:5] == ["class tench", "", "p = 0.25\nsays dog", "p = 0.50", "r = 0.50"]
    assert captions[5:] == ["class dog", "", "p = 1.00", "p = 1.00", "r not defined"]
    assert np.array_equal(array(panels[0]), image.transpose(1, 2, 0).repeat(3 // channels, 2))
    assert np.array_equal(array(panels[1]), square())
    assert np.array_equal(array(panels[2], 1), ramp(0, 1)), "over the image"
    assert array(panels[2], 0) == pytest.approx(image.mean(0)), "in grey"
    assert np.array_equal(array(panels[4]), ramp(1, 0) - ramp(0, 1)), "the model's minus the reference's"
    assert panels[4].images[0].get_clim() == (-1, 1)
    assert [axes.get_xlabel() for axes in bars] == ["of the map's maximum", "difference"]
    outlined = [bool(axes.collections) for axes in panels]
    assert outlined == [False, False, True, True, True, *[False] * 5], "where there is an object"
    assert figure.get_supxlabel().endswith("r: correlation of the two maps; lines: outline of the object")


def test_without_a_reference_and_masks(tmp_path: Path, drawn: list[Figure]) -> None:
    image = np.full((3, 6, 6), 0.5)
    draw_examples(tmp_path / "a.png", [Example(image, "cat", None, [Look(ramp(0, 1), 0.9, "cat")])], ["model"], "maps")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ["image", "model's map", ""]
    assert figure.axes[2].get_xlabel() == "of the map's maximum"
    assert figure.get_supxlabel() == "p: probability of the class"


def test_texts_do_not_overlap(tmp_path: Path, drawn: list[Figure]) -> None:
    """With long names, too."""
    image, name = np.full((3, 6, 6), 0.5), "a very long name of a class of objects"
    looks = [Look(ramp(0, 1), 0.9, "a Wide Name that goes on"), Look(ramp(0, 1), 0.9, "another name that is long")]
    draw_examples(tmp_path / "a.png", [Example(image, name, square(), looks, 1.0)] * 6, ["reference", "model"], "maps")
    (figure,) = drawn
    boxes = [text.get_window_extent() for text in visible_texts(figure)]
    assert len(boxes) > 30
    overlapping = [(one, other) for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]
    assert overlapping == []


def visible_texts(figure: Figure) -> list[Any]:
    texts = [axes.title for axes in figure.axes] + [axes.xaxis.label for axes in figure.axes]
    texts += [label for axes in figure.axes for label in axes.get_xticklabels()]
    return [text for text in [*texts, *figure.texts] if text.get_text() and text.get_visible()]


@pytest.mark.parametrize(
    ("largest", "limit"), [(0.0, 0.1), (0.1, 0.1), (0.11, 0.2), (0.3, 0.5), (-0.5, 0.5), (0.51, 1.0), (-1.0, 1.0)]
)
def test_the_scale_of_differences_shows_the_greatest(largest: float, limit: float) -> None:
    def example(change: float) -> Example:
        other = np.zeros((4, 4))
        other[1, 2] = change
        return Example(np.zeros((3, 4, 4)), "", None, [Look(np.zeros((4, 4)), 1.0, ""), Look(other, 1.0, "")])

    assert difference_limit([example(0.0), example(largest)]) == limit


def test_localization(tmp_path: Path, drawn: list[Figure]) -> None:
    sources = {
        "model": Metric(0.5, (0.4, 0.6), 9),
        "reference": Metric(0.7, (0.6, 0.9), 9),
        "centre gaussian": Metric(0.3, None, 9),
        "random": Metric(math.nan, None, 0),
    }
    measures = {"pointing game": sources, "energy in mask": sources, "MaxBoxAccV2": sources}
    path = tmp_path / "localization.png"
    draw_localization(path, measures, 0.06, "where the maps lie")
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == list(measures)
    first, _, last = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == list(sources)
    ours, theirs = first.lines[0], first.lines[2]
    assert np.asarray(ours.get_xdata()).tolist() == [0.4, 0.6]
    assert np.asarray(theirs.get_xdata()).tolist() == [0.6, 0.9]
    assert to_hex(ours.get_color()) != to_hex(theirs.get_color())
    assert first.lines[1].get_marker() != first.lines[3].get_marker(), "without colours, too"
    assert (len(first.lines), len(last.lines)) == (9, 8), "the object's share, where that is chance"
    assert np.asarray(first.lines[8].get_xdata()).tolist() == [0.06, 0.06]
    assert "(0.06)" in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("name", "short"), [("tench, Tinca tinca", "tench"), ("x" * 24, "x" * 24), ("y" * 25, "y" * 23 + "…"), ("", "")]
)
def test_names_are_shortened(name: str, short: str) -> None:
    assert shortened(name) == short
