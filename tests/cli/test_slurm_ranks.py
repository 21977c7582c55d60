"""Ranks that srun starts agree on a text, and so train in one run folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest

from compresslens.cli import slurm_ranks
from compresslens.cli.main import same_on_all_ranks
from compresslens.cli.requirements import ENTRY_POINT, undistributed_environment
from compresslens.cli.slurm_ranks import tasks
from compresslens.errors import UserError
from tests.cli.fake_slurm import FakeSlurm
from tests.cli.tiny import write_tiny
from tests.command_line import SHORT

Decide = Callable[[], Path]


def answer_of(rank: int, ranks: int, folder: Path, decide: Decide, patience: float) -> None:
    """In a process of its own: what this rank is told."""
    started = {
        "SLURM_PROCID": rank,
        "SLURM_NTASKS": ranks,
        "SLURM_NTASKS_PER_NODE": ranks,
        "SLURM_JOB_ID": os.getppid(),
    }
    os.environ.update({name: str(value) for name, value in {**started, "SLURM_NODELIST": "127.0.0.1"}.items()})
    slurm_ranks.PATIENCE = timedelta(seconds=patience)
    try:
        answer = str(same_on_all_ranks(decide))
    except UserError as error:
        answer = f"error: {error}"
    (folder / str(rank)).write_text(answer)


def answers(
    folder: Path, ranks: int, decide: Decide, started: Sequence[int] | None = None, patience: float = 60
) -> list[str]:
    """What the ranks are told; the highest starts first."""
    context = get_context("fork")
    numbers = range(ranks) if started is None else started
    processes = [context.Process(target=answer_of, args=(n, ranks, folder, decide, patience)) for n in numbers]
    for process in reversed(processes):
        process.start()
    for process in processes:
        process.join(120)
    return [(folder / str(rank)).read_text() for rank in numbers]


def own() -> Path:
    """Differs from rank to rank."""
    return Path("runs", "ä", os.environ["SLURM_PROCID"])


def test_all_ranks_get_what_rank_zero_decides(tmp_path: Path) -> None:
    assert answers(tmp_path, 3, own) == ["runs/ä/0"] * 3


def test_all_ranks_get_the_error_of_rank_zero(tmp_path: Path) -> None:
    def fail() -> Path:
        raise UserError("no room")

    assert answers(tmp_path, 2, fail) == ["error: no room"] * 2


def test_a_job_without_srun_is_told_so(tmp_path: Path) -> None:
    (answer,) = answers(tmp_path, 2, own, started=[0], patience=0.3)
    assert answer == "error: not all of the 2 processes of this SLURM job have started; start train.py with srun"


def test_ranks_without_rank_zero_say_so(tmp_path: Path) -> None:
    found = answers(tmp_path, 3, own, started=[1, 2], patience=0.3)
    assert found == [
        f"error: process {rank} of this SLURM job did not hear from process 0, whose own output may say why"
        for rank in (1, 2)
    ]


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    port = slurm_ranks.FIRST_PORT + int(str(os.getpid())[-4:])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier test may have used it
        with suppress(OSError):  # somebody has it: so much the better
            taken.bind(("", port))
            taken.listen()
        (answer,) = answers(tmp_path, 2, own, started=[0], patience=0.3)
    assert answer == f"error: process 0 of this SLURM job cannot listen on port {port}: submit the job again"


def test_the_error_of_rank_zero_comes_before_that_of_missing_ranks(tmp_path: Path) -> None:
    def fail() -> Path:
        raise UserError("no room")

    assert answers(tmp_path, 2, fail, started=[0], patience=0.3) == ["error: no room"]


def test_only_what_srun_has_started_are_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert tasks() == 1
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert tasks() == 1
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert tasks() == 4
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert tasks() == 1


@pytest.mark.slow
def test_two_processes_of_srun_train_one_network(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path)
    write_tiny(tmp_path)
    environment = undistributed_environment() | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "FAKE_TASKS": "2"}
    environment |= {"PATH": f"{slurm.path}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid())}
    log = [*("--output", str(tmp_path / "%t.out")), *("--error", str(tmp_path / "%t.err"))]
    train = [sys.executable, str(ENTRY_POINT), "fit", "--config", "./tiny.yaml", *SHORT]
    devices = ["--trainer.devices=2", "--trainer.num_nodes=1", "--trainer.accelerator=cpu"]
    command = [str(slurm.path / "srun"), *log, *train, *devices]
    status = subprocess.run(command, cwd=tmp_path, env=environment, check=False, timeout=280).returncode
    assert status == 0, (tmp_path / "0.err").read_text() + (tmp_path / "1.err").read_text()
    runs = [folder for folder in (tmp_path / "runs" / "tiny").iterdir() if not folder.is_symlink()]
    assert len(runs) == 1
    assert (runs[0] / "finished").is_file()
    results = json.loads((runs[0] / "results.json").read_text())
    assert results["metrics"]["accuracy/top1"]["n"] == 16  # a batch of eight of each rank
