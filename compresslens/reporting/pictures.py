"""Images and class names as figures show them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LONGEST = 24  # letters of a name


def as_picture(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An image C×H×W, C is 1 or 3, as H×W×3 in [0, 1]."""
    picture = np.clip(image, 0, 1).transpose(1, 2, 0)
    return picture.repeat(3, 2) if picture.shape[2] == 1 else picture


def literal(name: str) -> str:
    """A name as matplotlib takes it: `$` begins no formula, and legends do not leave out what begins with `_`."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def shortened(name: str) -> str:
    """The first of several names, and of a long one its beginning; see :func:`literal`."""
    first = name.split(",")[0]
    return literal(first if len(first) <= LONGEST else f"{first[: LONGEST - 1]}…")
