"""Work that one process does for all."""

from __future__ import annotations

import pickle
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
    failure: Exception | None = None
    parcel: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            parcel[0] = pickle.dumps((work(), None))  # here, since a failure of pickling must reach the others, too
        except Exception as error:  # raised below, on all ranks; a rank that is told nothing waits for ever
            failure = error
            parcel[0] = _pickled(error)
    distributed.broadcast_object_list(parcel, src=0)
    if failure is not None:
        raise failure  # with its traceback
    result, raised = pickle.loads(parcel[0])
    if raised is not None:
        raise raised
    return result


def _pickled(error: Exception) -> bytes:
    """No result, and the exception; another that says the same if it cannot be pickled."""
    try:
        parcel = pickle.dumps((None, error))
        pickle.loads(parcel)  # exceptions whose constructor wants more than a message can be written, but not read
        return parcel
    except Exception:  # pickling calls the exception's own code, which may raise anything
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
