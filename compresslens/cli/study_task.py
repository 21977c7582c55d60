"""What the jobs of a study do on a cluster; submitit stores these objects and calls them there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compresslens.cli.requirements import undistributed_environment
from compresslens.cli.study_plan import Job
from compresslens.cli.study_report import conclude

SECONDS_TO_STOP = 20.0  # SLURM waits 30 after its SIGTERM
SECONDS_TO_BE_STOPPED = 300.0


@dataclass(frozen=True)
class Training:
    """One job: every process that srun starts for it calls this.

    Attributes:
        job: what to train.
        start: the command.
        resume: the one that continues.
        begun: whether there is something to continue. All processes must do the same, and looking at the disk at
            different times may not show them the same, so this is known beforehand, unless SLURM restarts the job.
    """

    job: Job
    start: Sequence[str]
    resume: Sequence[str]
    begun: bool

    def __call__(self) -> None:
        """Trains.

        Raises:
            SystemExit: that failed.
        """
        if self.job.finished is not None:
            print(f"{self.job} is finished already", flush=True)
            return
        restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        status = run_task(self.resume if self.begun or (restarted and self.job.begun) else self.start)
        if status != 0:
            raise SystemExit(status if status > 0 else 128 - status)
        if int(os.environ.get("SLURM_PROCID", "0")) == 0 and self.job.finished is None:
            print(f"{self.job}: it left no finished run with a checkpoint", file=sys.stderr)
            raise SystemExit(1)

    def checkpoint(self) -> Any:
        """What submitit queues when the time is up or the job has to make room."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, begun=self.begun or self.job.begun))


@dataclass(frozen=True)
class Conclusion:
    """The last job: the report.

    Attributes:
        jobs: all of the study.
        logs: of those that were submitted, by key.
        output: folder of the report.
        title: of the report.
        limits: see `compresslens.cli.thresholds`.
    """

    jobs: Sequence[Job]
    logs: Mapping[tuple[str, int], str]
    output: Path
    title: str
    limits: Mapping[str, float]

    def __call__(self) -> None:
        """Reports.

        Raises:
            SystemExit: a job failed, or the report cannot be made.
        """
        status = conclude(self.jobs, self.failures(), self.output, self.title, self.limits)
        if status != 0:
            raise SystemExit(status)

    def failures(self) -> dict[tuple[str, int], str]:
        """Why jobs are not finished."""
        failed: dict[tuple[str, int], str] = {}
        for job in self.jobs:
            if job.finished is not None:
                continue
            lost = [name for name in job.requires if (name, job.seed) in failed]
            log = self.logs.get(job.key)
            failed[job.key] = f"it requires {lost[0]}, which failed" if lost else f"see {log or 'its run folder'}"
        return failed


def run_task(command: Sequence[str]) -> int:
    """Runs a training as one process of this job; returns its exit status (negative: the signal that ended it).

    A job that is to make room gets SIGTERM, and is queued again only if it then waits for what SLURM does with it, so
    this does not return at once after one.
    """
    told: list[int] = []
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        told.append(number)
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, note)
    process = subprocess.Popen(command, env=_environment(), preexec_fn=_leave_requeueing_to_submitit)
    try:
        status = process.wait()
        if status != 0 and told:
            time.sleep(SECONDS_TO_BE_STOPPED)
        return status
    finally:
        if process.poll() is None:  # submitit queues the job again, and leaves
            process.terminate()
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
        signal.signal(signal.SIGTERM, before)


def _leave_requeueing_to_submitit() -> None:
    """In the training: ignores the signal that says that the time is up, which would end it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _environment() -> dict[str, str]:
    """Without what another launcher has set for its ranks, but with what Lightning reads of SLURM's."""
    slurm = {k: v for k, v in os.environ.items() if k.startswith("SLURM_") or k in ("MASTER_ADDR", "MASTER_PORT")}
    return {**undistributed_environment(), **slurm}
