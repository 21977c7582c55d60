"""Lets the processes that `srun` starts agree on a text before any process group exists.

Tried with two processes that had the environment which srun gives them, not on a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

from compresslens.errors import UserError

PATIENCE = timedelta(minutes=10)
FIRST_PORT = 25_000  # Lightning's own port is 15000 + the last four digits of the job's number


def tasks() -> int:
    """How many processes srun started for Lightning; 1 outside of a job, and in an interactive one."""
    if "SLURM_PROCID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return 1
    return int(os.environ.get("SLURM_NTASKS", "1"))


def agree_under_slurm(decide: Callable[[], str]) -> str:
    """The value that rank zero decides on, for every rank.

    Rank zero serves it until all have read it.

    Args:
        decide: called on rank zero only.

    Raises:
        UserError: rank zero failed (its own message), or some ranks are missing.
    """
    from lightning_fabric.plugins.environments import SLURMEnvironment
    from torch.distributed import DistStoreError, TCPStore

    rank = int(os.environ["SLURM_PROCID"])
    port = FIRST_PORT + int(os.environ["SLURM_JOB_ID"][-4:])
    answer = "" if rank else _answer(decide)
    store = TCPStore(
        SLURMEnvironment().main_address, port, is_master=rank == 0, wait_for_workers=False, timeout=PATIENCE
    )
    if rank == 0:
        store.set("answer", answer)
        try:
            store.wait(["read"])
        except DistStoreError:
            raise UserError(
                f"not all of the {tasks()} processes of this SLURM job have started; start train.py with srun"
            ) from None
    else:
        answer = store.get("answer").decode()
        if store.add("readers", 1) == tasks() - 1:
            store.set("read", "")
    if answer.startswith("-"):
        raise UserError(answer[1:])
    return answer[1:]


def _answer(decide: Callable[[], str]) -> str:
    try:
        return f"+{decide()}"
    except UserError as error:
        return f"-{error}"
