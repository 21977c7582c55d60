"""What the figure of t-SNE maps shows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from compresslens.reporting.tsne_figure import COLOURS, MARKERS, FeatureMap, Maps, draw_maps, style

ODD = ["tench, Tinca tinca", "$\\frac{a$", "a_b^{c", "x" * 80]


def example(count: int, classes: int, maps: int, names: list[str] | None = None, cka: float | None = None) -> Maps:
    generator = np.random.default_rng(0)
    labels = np.arange(count) % classes
    drawn = [
        FeatureMap(
            ["reference", "model"][-maps:][number],
            generator.normal(size=(count, 2)) * (number + 1),
            np.where(np.arange(count) < 5 + number, (labels + 1) % classes, labels),
            0.5 + 0.25 * number,
            0.9,
        )
        for number in range(maps)
    ]
    thumbnails = generator.integers(0, 256, (count, 6, 8, 3)).astype(np.uint8)
    named = [f"class {number}" for number in range(classes)] if names is None else names
    return Maps(drawn, np.arange(count), labels, named, thumbnails, cka)


def test_two_maps(tmp_path: Path, drawn: list[Figure]) -> None:
    maps = example(60, 4, 2, cka=0.1234)
    draw_maps(tmp_path / "tsne.png", maps)
    assert (tmp_path / "tsne.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert figure.get_suptitle() == "t-SNE of 60 images' features; CKA of the features 0.123"
    one, other = figure.axes
    assert one.get_title() == "reference\nkNN accuracy of features 0.500, trustworthiness 0.900"
    assert other.get_title() == "model\nkNN accuracy of features 0.750, trustworthiness 0.900"
    assert (one.get_xlabel(), other.get_xlabel()) == ("5 of 60 misclassified", "6 of 60 misclassified")
    assert (one.get_xlim(), one.get_ylim()) == (other.get_xlim(), other.get_ylim()), "the same axes"
    left, right, bottom, top = maps.bounds
    for axes, of_network in zip(figure.axes, maps.maps, strict=True):
        *dots, rings = axes.collections
        for label, scatter in enumerate(dots):
            places = np.asarray(scatter.get_offsets())
            assert places.tolist() == of_network.positions[maps.labels == label].tolist()
            colour = np.asarray(scatter.get_facecolor())[0, :3].tolist()
            assert to_hex(tuple(colour)).upper() == COLOURS[label]  # type: ignore[arg-type]
        wrong = of_network.predicted != maps.labels
        assert np.asarray(rings.get_offsets()).tolist() == of_network.positions[wrong].tolist()
        assert ((of_network.positions > (left, bottom)) & (of_network.positions < (right, top))).all()
        names = [text.get_text() for text in axes.texts]
        assert names == ["class 0", "class 1", "class 2", "class 3"]


def test_one_map(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_maps(tmp_path / "one.png", example(30, 3, 1))
    draw_maps(tmp_path / "two.png", example(30, 3, 2))
    one = drawn[0]
    assert len(one.axes) == 1
    assert one.get_suptitle() == "t-SNE of 30 images' features"
    sizes = [Image.open(tmp_path / f"{name}.png").size for name in ("one", "two")]
    assert sizes[1] == (2 * sizes[0][0], sizes[0][1])


def test_many_classes(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_maps(tmp_path / "tsne.png", example(300, 100, 2))
    assert all(not axes.texts for axes in drawn[0].axes), "names would hide the dots"
    assert len(drawn[0].axes[0].collections) == 101


def test_styles_differ_as_long_as_they_can() -> None:
    most = len(COLOURS) * len(MARKERS)
    assert len({style(place) for place in range(most)}) == most
    assert style(most) == style(0)
    assert style(len(COLOURS)) == (COLOURS[0], MARKERS[1])


def test_classes_that_the_images_do_not_have(tmp_path: Path, drawn: list[Figure]) -> None:
    maps = example(30, 3, 1, [f"class {number}" for number in range(9)])
    maps.labels[:] = np.where(maps.labels == 1, 8, maps.labels)
    draw_maps(tmp_path / "tsne.png", maps)
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["class 0", "class 2", "class 8"]


def test_names_are_shown_as_they_are(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_maps(tmp_path / "tsne.png", example(40, 4, 1, ODD))
    names = [text.get_text() for text in drawn[0].axes[0].texts]
    assert names == ["tench", "$\\frac{a$", "a_b^{c", "x" * 18]


def test_what_was_not_measured_is_not_shown() -> None:
    def quality(knn: float, trustworthiness: float) -> str:
        return FeatureMap("model", np.zeros((1, 2)), np.zeros(1, np.int64), knn, trustworthiness).quality

    assert quality(0.5, math.nan) == "kNN accuracy of features 0.500"
    assert quality(math.nan, 0.5) == "trustworthiness 0.500"
    assert quality(math.nan, math.nan) == ""
    assert example(4, 2, 1, cka=math.nan).title == "t-SNE of 4 images' features"


def test_all_images_at_one_place(tmp_path: Path, drawn: list[Figure]) -> None:
    maps = example(20, 2, 1)
    maps.maps[0].positions[:] = 0
    draw_maps(tmp_path / "tsne.png", maps)
    left, right, _, _ = maps.bounds
    assert left < 0 < right
    assert drawn[0].axes[0].get_xlim() == (left, right)
