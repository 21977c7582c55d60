from __future__ import annotations

from typing import Any

import pytest

from compresslens.errors import UserError
from compresslens.pruning.targets import Target, one_target, require_met


@pytest.mark.parametrize(
    ("given", "target", "remaining"),
    [
        ((0.9, None, None), Target("sparsity", 0.9), 20.0),
        ((0.0, None, None), Target("sparsity", 0.0), 200.0),
        ((None, 0.25, None), Target("parameters", 0.25), 50.0),
        ((None, 70, None), Target("parameters", 70), 70.0),
        ((None, None, 0.5), Target("macs", 0.5), 100.0),
        ((None, None, 1), Target("macs", 1), 1.0),
    ],
)
def test_what_remains(given: Any, target: Target, remaining: float) -> None:
    assert one_target(*given) == target
    assert target.remaining(200) == pytest.approx(remaining)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None, None), "exactly one target, but there is none: set sparsity, parameters or macs"),
        ((0.5, None, 0.5), "there is sparsity=0.5 and macs=0.5"),
        ((1.0, None, None), r"sparsity is 1; it must be in \[0, 1\)"),
        ((-0.1, None, None), r"sparsity is -0.1"),
        ((float("nan"), None, None), r"sparsity is nan"),
        ((None, 0, None), "parameters is 0; give a fraction below 1 or a count"),
        ((None, None, -5), "macs is -5"),
        ((None, None, float("inf")), "macs is inf"),
    ],
)
def test_targets_that_make_no_sense(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        one_target(*given)


def test_within_one_percent() -> None:
    require_met(Target("macs", 0.5), 1000, 1010)
    require_met(Target("macs", 0.5), 1000, 990)
    require_met(Target("sparsity", 0.0), 0.0, 0.0)
    with pytest.raises(UserError, match=r"macs=0.5 cannot be met within 1 %: the nearest .* is macs 1,211$"):
        require_met(Target("macs", 0.5), 1000, 1211)
    with pytest.raises(UserError, match=r"sparsity=0.99 .* is sparsity 0.95$"):
        require_met(Target("sparsity", 0.99), 0.99, 0.95)
