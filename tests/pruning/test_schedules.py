from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresslens.errors import UserError
from compresslens.pruning.schedules import (
    Schedule,
    check_end,
    check_window,
    last_validation,
    share,
    update_steps,
    updates_due,
)
from tests.references import pruning as reference


@given(st.fractions(0, 1, max_denominator=50), st.fractions(0, 1, max_denominator=20))
def test_cubic_is_zhu_and_guptas(progress: Fraction, final: Fraction) -> None:
    begin, end, initial = Fraction(10), Fraction(60), Fraction(0)
    expected = reference.cubic_sparsity(begin + progress * (end - begin), begin, end, initial, final)
    assert float(final) * share("cubic", float(progress)) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("schedule", ["one_shot", "iterative", "cubic"])
def test_shares_grow_to_everything(schedule: Schedule) -> None:
    shares = [share(schedule, step / 7) for step in range(8)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert shares[0] == (1 if schedule == "one_shot" else 0)


def test_iterative_goes_in_equal_parts() -> None:
    assert [share("iterative", step / 4) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("progress", [-0.01, 1.01])
def test_a_progress_that_is_none(progress: float) -> None:
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        share("cubic", progress)


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ((100, 0.0, 0.6, 4), [0, 20, 40, 60]),
        ((10, 0.3, 0.9, 3), [3, 6, 9]),  # 0.3 * 10 is 3.0000000000000004 in floating point
        ((27, 0.0, 0.6, 3), [0, 9, 17]),  # 8.1 and 16.2: not before they are reached
        ((4, 0.0, 0.5, 5), [0, 1, 1, 2, 2]),
        ((10, 0.2, 0.5, 1), [5]),
    ],
)
def test_when_updates_take_place(arguments: tuple[int, float, float, int], steps: list[int]) -> None:
    assert update_steps(*arguments) == steps


def test_updates_that_are_due() -> None:
    assert [updates_due(step, [2, 3, 3, 6]) for step in range(8)] == [0, 0, 1, 3, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("total", "per_epoch", "every", "expected"),
    [
        (100, 10, 1, 100),
        (100, 10, 3, 90),
        (95, 10, 1, 95),  # max_steps ends the training within an epoch
        (95, 10, 3, 90),
        (20, 10, 3, 20),  # no validation at all: the end counts
        (100, 10, None, 100),
    ],
)
def test_last_validation(total: int, per_epoch: int, every: int | None, expected: int) -> None:
    assert last_validation(total, per_epoch, every) == expected


@pytest.mark.parametrize(
    ("updates", "begin", "end", "message"),
    [(1, 0.0, 0.6, "schedule_steps is 1"), (5, 0.6, 0.6, "from 0.6 to 0.6"), (5, 0.0, 1.0, "from 0 to 1")],
)
def test_windows_that_cannot_be(updates: int, begin: float, end: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_window(updates, begin, end)


def test_the_last_update_comes_before_the_last_validation() -> None:
    check_end(89, 90)
    with pytest.raises(UserError, match="would end at step 90, but the last validation is after step 90"):
        check_end(90, 90)
