"""The interactive page: one file that asks the network for nothing and takes no text for code."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compresslens.reporting import tsne_page
from compresslens.reporting.tsne_figure import Maps, style
from compresslens.reporting.tsne_page import sprite, write_page
from tests.reporting.test_tsne_figure import example

EVIL = ["</script><script>alert(1)</script>", "<!--<script>", "<img src=x onerror=alert(1)>", "\u2028 é \" ' & \\"]


class Page(HTMLParser):
    """Tags with their attributes, texts by the element that they are in, and the scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)

    @property
    def content(self) -> dict[str, Any]:
        """What the script draws."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.texts["script"][0], parse_constant=refuse)


def written(folder: Path, maps: Maps) -> Page:
    path = folder / "tsne.html"
    write_page(path, maps)
    return Page(path)


def picture(content: dict[str, Any]) -> Any:
    kind, data = content["address"].split(",", 1)
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("maps", [1, 2])
def test_content(tmp_path: Path, maps: int) -> None:
    shown = example(23, 4, maps, cka=0.5)
    page = written(tmp_path, shown)
    assert page.open == []
    assert page.texts["title"] == page.texts["h1"] == [shown.title]
    content = page.content
    assert content["index"] == list(range(23))
    assert content["labels"] == shown.labels.tolist()
    assert content["names"] == {str(number): f"class {number}" for number in range(4)}
    assert content["styles"] == {str(number): list(style(number)) for number in range(4)}
    assert content["bounds"] == pytest.approx(list(shown.bounds))
    assert [one["name"] for one in content["maps"]] == ["reference", "model"][-maps:]
    for one, of_network in zip(content["maps"], shown.maps, strict=True):
        assert np.asarray(one["positions"]) == pytest.approx(of_network.positions, abs=5e-4)
        assert one["predicted"] == of_network.predicted.tolist()
        assert one["quality"] == of_network.quality


def test_only_the_classes_that_occur_are_named(tmp_path: Path) -> None:
    shown = example(12, 3, 1, [f"class {number}" for number in range(1000)])
    shown.maps[0].predicted[0] = 777
    content = written(tmp_path, shown).content
    assert set(content["names"]) == {"0", "1", "2", "777"}
    assert set(content["styles"]) == {"0", "1", "2"}


# Nothing gets out, nothing gets in ------------------------------------------------------------------------------------


def test_names_are_texts(tmp_path: Path) -> None:
    page = written(tmp_path, example(20, 4, 2, EVIL))
    plain = written(tmp_path, example(20, 4, 2))
    assert list(page.content["names"].values()) == EVIL
    assert page.tags == plain.tags, "no element comes from a name"
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert page.texts["script"][1] == plain.texts["script"][1], "nor any code"
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert sink not in page.source, "the script makes texts of the names"


def test_nothing_is_fetched(tmp_path: Path) -> None:
    page = written(tmp_path, example(20, 4, 2))
    assert not re.search(r"https?:|//[a-z0-9]+\.[a-z]|@import|url\(", page.source)
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "action", "data", "poster"} & set(attributes)
    code = page.texts["script"][1]
    for request in ("fetch(", "XMLHttpRequest", "WebSocket", "sendBeacon", "import(", "importScripts", "EventSource"):
        assert request not in code
    assert re.findall(r"\.src = (\S+);", code) == ["data.sprite.address"]
    assert page.content["sprite"]["address"].startswith("data:image/jpeg;base64,")


def test_braces_in_names_are_no_placeholders(tmp_path: Path) -> None:
    names = ["{{content}}", "{{title}}", "a", "b"]
    assert list(written(tmp_path, example(20, 4, 1, names)).content["names"].values()) == names


# Thumbnails -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "height", "width"), [(1, 8, 8), (7, 16, 16), (50, 32, 24), (50, 8, 32)])
def test_every_thumbnail_is_where_the_script_looks_for_it(count: int, height: int, width: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3))
    thumbnails = np.broadcast_to(colours, (count, height, width, 3)).astype(np.uint8)
    content = sprite(thumbnails)
    sheet, columns = picture(content), content["columns"]
    assert (content["height"], content["width"]) == (height, width)
    for number in range(count):
        top, left = number // columns * height, number % columns * width
        middle = sheet[top + height // 2 - 1, left + width // 2 - 1].astype(int)
        assert np.abs(middle - colours[number, 0, 0]).max() <= 12
    assert max(sheet.shape[:2]) < 2.5 * np.sqrt(count * height * width) + 32, "about square"


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is the worst that a JPEG can meet."""
    monkeypatch.setattr(tsne_page, "MOST_BYTES", 30_000)
    noise = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3)).astype(np.uint8)
    content = sprite(noise)
    assert len(base64.b64decode(content["address"].split(",")[1])) <= 30_000
    assert (content["height"], content["width"]) < (32, 32)
    rows = -(-400 // content["columns"])
    assert picture(content).shape[:2] == (rows * content["height"], content["columns"] * content["width"])


def test_a_thousand_images(tmp_path: Path) -> None:
    shown = example(1000, 100, 2)
    write_page(tmp_path / "tsne.html", shown)
    without = len(sprite(shown.thumbnails)["address"])
    assert (tmp_path / "tsne.html").stat().st_size - without < 80_000
