"""Runs the jobs of a study on this machine, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from compresslens.cli.requirements import ENTRY_POINT, undistributed_environment
from compresslens.cli.study_plan import Job

POLL_SECONDS = 0.5
SECONDS_TO_STOP = 30.0

Running = dict[tuple[str, int], tuple[Job, "subprocess.Popen[bytes]", float]]


def command(job: Job, options: Sequence[str], resume: bool) -> list[str]:
    """How to train, or to continue, which takes all options from the run's own config."""
    call = [sys.executable, str(ENTRY_POINT), "fit", "--config", str(job.config), "--runs_dir", str(job.runs_dir)]
    call += ["--requires", "none"]
    if resume:
        return [*call, "--resume"]
    seeds = [f"--{key}={job.seed}" for key in ("seed_everything", "model.seed", "data.seed")]
    return [*call, *seeds, *options]


def environment(at_a_time: int) -> dict[str, str]:
    """Of a training: with its share of the cores, since threads of several that wait for each other collapse."""
    shared = undistributed_environment()
    if at_a_time > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        shared.setdefault("OMP_NUM_THREADS", str(max(1, cores // at_a_time)))
    return shared


def execute(jobs: Sequence[Job], options: Sequence[str], at_a_time: int) -> dict[tuple[str, int], str]:
    """Trains what is not finished; goes on past failures.

    Returns:
        Why a job was not done, by its key.
    """
    waiting = [job for job in jobs if job.finished is None]
    running: Running = {}
    failed: dict[tuple[str, int], str] = {}
    try:
        while waiting or running:
            for key, (job, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[key]
                if reason := _failure(job, process.returncode):
                    failed[key] = reason
                minutes = (time.monotonic() - began) / 60
                print(f"study: {job}: {failed.get(key, 'done')}, {minutes:.1f} minutes", flush=True)
            for job in list(waiting):
                needed = [(name, job.seed) for name in job.requires]
                lost = [name for name, seed in needed if (name, seed) in failed]
                busy = {other.key for other in waiting} | set(running)
                if lost:
                    failed[job.key] = f"it requires {lost[0]}, which failed"
                    print(f"study: {job}: {failed[job.key]}", flush=True)
                    waiting.remove(job)
                elif len(running) < at_a_time and not any(key in busy for key in needed):
                    waiting.remove(job)
                    resume = job.begun
                    print(f"study: {job}: {'continuing' if resume else 'starting'}", flush=True)
                    process = subprocess.Popen(command(job, options, resume), env=environment(at_a_time))
                    running[job.key] = (job, process, time.monotonic())
            if running:
                time.sleep(POLL_SECONDS)
    finally:
        _stop([process for _, process, _ in running.values()])  # the study was interrupted
    return failed


def _failure(job: Job, status: int) -> str | None:
    if status < 0:
        return f"killed by signal {-status}"
    if status > 0:
        return f"exit status {status}"
    return None if job.finished else "it left no finished run with a checkpoint"


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends trainings; they can be continued, even those that have to be killed."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + SECONDS_TO_STOP
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
