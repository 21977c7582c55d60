"""Work that one process does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def on_rank_zero(work: Callable[[], Result]) -> Result:
    """Does something on rank zero and hands the result, which is pickled, to all; the others wait.

    Raises:
        Exception: what the work raised, on all ranks, so that none waits for ever.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return work()
    outcome: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
