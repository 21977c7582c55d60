"""How much of the pruning has to be done by when. Pure functions."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["one_shot", "iterative", "cubic"]


def share(schedule: Schedule, progress: float) -> float:
    """Share of the final pruning, in [0, 1], that is due at a progress in [0, 1].

    * one_shot: everything at once;
    * iterative: equal parts;
    * cubic: `1 - (1 - t)^3` (Zhu & Gupta 2017, equation 1): much while much is redundant, little at the end.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"a progress of {progress} is not in [0, 1]")
    if schedule == "one_shot":
        return 1.0
    if schedule == "iterative":
        return progress
    return 1 - (1 - progress) ** 3


def update_steps(total: int, begin: float, end: float, updates: int) -> list[int]:
    """The steps before which the updates take place: evenly spaced, the first at `begin`, the last at `end`.

    Args:
        total: steps of the whole training.
        begin: fraction of the training, in [0, 1].
        end: fraction of the training, in [begin, 1].
        updates: their number, at least 1; a single one takes place at `end`.
    """
    last = max(updates - 1, 1)
    fractions = [begin + (end - begin) * number / last for number in range(updates)]
    if updates == 1:
        fractions = [end]
    # 0.3 * 10 is more than 3 in floating point, and must not become 4
    return [math.ceil(round(fraction * total, 9)) for fraction in fractions]


def updates_due(step: int, steps: Sequence[int]) -> int:
    """How many updates must have taken place before that step; `steps` ascending, from :func:`update_steps`."""
    return bisect_right(steps, step)
