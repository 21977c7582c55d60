"""What a report counts as the same: options that `report.py` and `study.py` share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from compresslens.errors import UserError
from compresslens.study.thresholds import Thresholds

DEFAULTS: dict[str, float] = asdict(Thresholds())


def add_threshold_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--localization` and `--distance`, without defaults: :func:`thresholds` knows them."""
    texts = {
        "localization": "share of the energy on the object that may be lost",
        "distance": "adversarials nearer or farther by a factor of at most 1 + this count as equally far",
    }
    for name, text in texts.items():
        parser.add_argument(f"--{name}", type=float, help=f"{text} ({DEFAULTS[name]:g})")


def thresholds(*given: Mapping[str, Any]) -> dict[str, float]:
    """The first value that is given for each, else the default.

    Raises:
        UserError: out of range.
    """
    found = {
        name: next((values[name] for values in given if values.get(name) is not None), default)
        for name, default in DEFAULTS.items()
    }
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in found.values()):
        raise UserError(f"{' and '.join(found)} must be numbers, not {', '.join(map(repr, found.values()))}")
    if not 0 <= found["localization"] < 1 or not 0 <= found["distance"] < float("inf"):
        raise UserError("localization must be in [0, 1), distance at least 0")
    return found
