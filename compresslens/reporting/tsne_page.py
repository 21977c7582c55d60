"""An interactive page of t-SNE maps: one file, which needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compresslens.reporting.tsne_figure import Maps, style

MOST_BYTES = 6_000_000  # of thumbnails; beyond, their quality is reduced, then their size
QUALITIES = (85, 60, 40)


def write_page(path: Path, maps: Maps) -> None:
    """The maps side by side; pointing at an image shows it in all of them, with its class and the predictions.

    All texts that come from data are escaped.

    Args:
        path: the HTML file.
        maps: see there.
    """
    classes = np.unique(maps.labels)
    places = {int(label): place for place, label in enumerate(classes)}
    content: dict[str, Any] = {
        "bounds": maps.bounds,
        "index": maps.index.tolist(),
        "labels": maps.labels.tolist(),
        "names": {str(label): maps.class_names[label] for label in _named(maps)},
        "styles": {str(label): style(place) for label, place in places.items()},
        "maps": [
            {
                "name": drawn.name,
                "quality": drawn.quality,
                "positions": np.round(drawn.positions, 3).tolist(),
                "predicted": drawn.predicted.tolist(),
            }
            for drawn in maps.maps
        ],
        "sprite": sprite(maps.thumbnails),
    }
    # "<" must not be in a script: "</script>" would end it, whoever wrote it there
    plain = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    template = files("compresslens.reporting").joinpath("tsne_page.html").read_text(encoding="utf-8")
    page = template.replace("{{title}}", html.escape(maps.title)).replace("{{content}}", plain)
    path.write_text(page, encoding="utf-8")


def sprite(thumbnails: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """All thumbnails N×h×w×3 in one JPEG, as a data address, with how they are laid out."""
    _, height, width, _ = thumbnails.shape
    sheet, columns = _sheet(thumbnails)
    for quality in QUALITIES:
        data = _jpeg(sheet, quality)
        if len(data) <= MOST_BYTES:
            break
    else:
        if min(height, width) > 1:
            return sprite(thumbnails[:, ::2, ::2])
    address = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return {"address": address, "columns": columns, "height": height, "width": width}


def _sheet(thumbnails: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], int]:
    """The thumbnails row by row in one picture, about square, and how many are in a row."""
    count, height, width, _ = thumbnails.shape
    columns = max(1, math.ceil(math.sqrt(count * height / width)))
    rows = -(-count // columns)
    filled = np.zeros((rows * columns, height, width, 3), np.uint8)
    filled[:count] = thumbnails
    sheet = filled.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return sheet.reshape(rows * height, columns * width, 3), columns


def _jpeg(picture: npt.NDArray[np.uint8], quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _named(maps: Maps) -> set[int]:
    """The classes that occur, as labels or predictions."""
    predicted = [drawn.predicted for drawn in maps.maps]
    return {int(label) for label in np.unique(np.concatenate([maps.labels, *predicted]))}
