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
        UserError: rank zero failed (its own message), or the ranks do not find each other.
    """
    from lightning_fabric.plugins.environments import SLURMEnvironment
    from torch.distributed import DistError

    rank = int(os.environ["SLURM_PROCID"])
    answer = _answer(decide) if rank == 0 else ""
    try:
        answer = _exchange(SLURMEnvironment().main_address, rank, answer)
    except DistError as error:
        if not answer.startswith("-"):  # else rank zero's own failure says more
            raise UserError(_reason(rank, error)) from None
    if answer.startswith("-"):
        raise UserError(answer[1:])
    return answer[1:]


def _exchange(address: str, rank: int, answer: str) -> str:
    """Rank zero's answer, on every rank."""
    from torch.distributed import TCPStore

    store = TCPStore(address, _port(), is_master=rank == 0, wait_for_workers=False, timeout=PATIENCE)
    if rank == 0:
        store.set("answer", answer)
        store.wait(["read"])
        return answer
    answer = store.get("answer").decode()
    if store.add("readers", 1) == tasks() - 1:
        store.set("read", "")
    return answer


def _port() -> int:
    return FIRST_PORT + int(os.environ["SLURM_JOB_ID"][-4:])


def _reason(rank: int, error: Exception) -> str:
    from torch.distributed import DistNetworkError

    if rank > 0:
        return f"process {rank} of this SLURM job did not hear from process 0, whose own output may say why"
    if isinstance(error, DistNetworkError):
        return f"process 0 of this SLURM job cannot listen on port {_port()}: submit the job again"
    return f"not all of the {tasks()} processes of this SLURM job have started; start train.py with srun"


def _answer(decide: Callable[[], str]) -> str:
    try:
        return f"+{decide()}"
    except UserError as error:
        return f"-{error}"
