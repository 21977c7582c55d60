"""What a report counts as the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """What counts as the same.

    Attributes:
        localization: share of the reference's energy in the mask that may be lost.
        distance: factor - 1 by which adversarials may lie nearer or farther.
    """

    localization: float = 0.1
    distance: float = 0.1
