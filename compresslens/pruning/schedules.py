"""How much of the pruning has to be done by when. Pure functions."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

from compresslens.errors import UserError

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


def check_window(updates: int, begin: float, end: float) -> None:
    """Raises UserError unless a gradual schedule can go from `begin` to `end` (fractions of the training) so."""
    if updates < 2:
        raise UserError(f"schedule_steps is {updates}; it must be at least 2, or the schedule one_shot")
    if not 0 <= begin < end < 1:
        raise UserError(
            f"the schedule goes from {begin:g} to {end:g} of the training; "
            "it must be 0 <= schedule_begin < schedule_end < 1"
        )


def last_validation(total: int, per_epoch: int, every: int | None) -> int:
    """The step after which the network is validated for the last time.

    Args:
        total: steps of the whole training.
        per_epoch: steps of an epoch.
        every: number of epochs from one validation to the next; None: not by epochs, so that the end counts.
    """
    if not every:
        return total
    epochs = math.ceil(total / per_epoch) // every * every
    return min(total, epochs * per_epoch) or total


def check_end(last: int, validation: int) -> None:
    """Raises UserError unless the last update comes before the step of the last validation."""
    if last >= validation:
        raise UserError(
            f"the schedule would end at step {last}, but the last validation is after step {validation}: "
            "train for more epochs, or lower schedule_end"
        )
