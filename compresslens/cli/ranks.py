"""Lets processes that `torchrun` starts at the same moment agree on a text before any process group exists."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

from compresslens.errors import UserError


def agree(decide: Callable[[], str]) -> str:
    """The value that rank zero decides on, for every rank.

    The value travels through the key-value store that torchrun's agent keeps for rendezvous.

    Args:
        decide: called on rank zero only.

    Raises:
        UserError: rank zero failed (its own message), or did not answer.
    """
    from torch.distributed import TCPStore

    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(minutes=30)
    )
    key = f"compresslens/{os.environ['TORCHELASTIC_RUN_ID']}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if int(os.environ["RANK"]) == 0:
        try:
            answer = f"+{decide()}"
        except UserError as error:
            store.set(key, f"-{error}")
            raise
        store.set(key, answer)
        return answer[1:]
    answer = store.get(key).decode()
    if answer.startswith("-"):
        raise UserError(answer[1:])
    return answer[1:]
