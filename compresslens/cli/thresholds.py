"""What a report counts as the same: options that `report.py` and `study.py` share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from compresslens.errors import UserError

DEFAULTS = {"localization": 0.1, "distance": 0.1}


def add_threshold_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--localization` and `--distance`, without defaults: :func:`thresholds` knows them."""
    parser.add_argument("--localization", type=float, help="share of the energy on the object that may be lost (0.1)")
    parser.add_argument("--distance", type=float, help="adversarials may lie 1 + this nearer (0.1)")


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
