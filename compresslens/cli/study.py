"""`python study.py --config study_resnet18.yaml`: experiments × seeds, then the report."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from compresslens.cli.configs import refuse_circles
from compresslens.cli.requirements import ENTRY_POINT, undistributed_environment
from compresslens.cli.study_plan import Job, Study, plan, read_study, seconds_of
from compresslens.errors import UserError

POLL_SECONDS = 0.5


def main(arguments: Sequence[str]) -> int:
    """Runs a study; returns the exit status: 1 if an experiment failed, 2 if the study cannot begin."""
    parser = argparse.ArgumentParser(prog="study.py", description="Experiments × seeds, then the report.")
    parser.add_argument("--config", required=True, metavar="NAME", help="a study in configs/studies/, or a path")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the study")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (1)")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="where run folders are kept (runs)")
    parser.add_argument("--output", type=Path, help="folder of the report (<runs_dir>/<study>/report)")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="options of train.py for every experiment")
    options = parser.parse_args(arguments)
    try:
        if options.jobs < 1:
            raise UserError(f"--jobs is {options.jobs}; it must be at least 1")
        study = read_study(options.config)
        for config in study.experiments:
            refuse_circles(config)
        seeds = study.seeds if options.seeds is None else list(dict.fromkeys(options.seeds))
        study = Study(study.name, study.experiments, seeds, [*study.options, *options.options])
        jobs = plan(study, options.runs_dir)
        show(jobs, options.runs_dir, options.jobs)
        if options.dry_run:
            return 0
        failed = execute(jobs, study.options, options.jobs)
        return conclude(jobs, failed, options.output or options.runs_dir / study.name / "report", study.name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this stopped", file=sys.stderr)
        return 130


def show(jobs: Sequence[Job], runs_dir: Path, at_a_time: int) -> None:
    """Prints the plan, with what each job took before."""
    total, unknown = 0.0, 0
    print(f"{'experiment':34}{'seed':>5}  {'state':12}{'minutes, as before':>20}")
    for job in jobs:
        state = "finished" if job.finished else "to continue" if job.begun else "to do"
        seconds = seconds_of(job, runs_dir)
        if state != "finished":
            unknown += seconds is None
            total += seconds or 0.0
        print(f"{job.name:34}{job.seed:>5}  {state:12}{'unknown' if seconds is None else f'{seconds / 60:.1f}':>20}")
    left = f"about {total / 60 / at_a_time:.0f} minutes" if total else "no experience how long"
    print(f"{len(jobs)} jobs, {left} to go{f', {unknown} of them unknown' if unknown and total else ''}", flush=True)


def execute(jobs: Sequence[Job], options: Sequence[str], at_a_time: int) -> dict[tuple[str, int], str]:
    """Trains what is not finished, each in a process of its own; goes on past failures.

    Returns:
        Why a job was not done, by its key.
    """
    waiting = [job for job in jobs if job.finished is None]
    running: dict[tuple[str, int], tuple[Job, subprocess.Popen[bytes], float]] = {}
    failed: dict[tuple[str, int], str] = {}
    try:
        while waiting or running:
            for key, (job, process, began) in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[key]
                if status != 0 or job.finished is None:
                    failed[key] = f"exit status {status}" if status else "it left no finished run with a checkpoint"
                print(
                    f"study: {_named(job)}: {failed.get(key, 'done')}, {(time.monotonic() - began) / 60:.1f} minutes",
                    flush=True,
                )
            for job in list(waiting):
                needed = [(name, job.seed) for name in job.requires]
                lost = [key for key in needed if key in failed]
                busy = {other.key for other in waiting} | set(running)
                if lost:
                    failed[job.key] = f"it requires {lost[0][0]}, which failed"
                    print(f"study: {_named(job)}: {failed[job.key]}", flush=True)
                    waiting.remove(job)
                elif len(running) < at_a_time and not any(key in busy for key in needed):
                    waiting.remove(job)
                    print(f"study: {_named(job)}: {'continuing' if job.begun else 'starting'}", flush=True)
                    process = subprocess.Popen(command(job, options), env=undistributed_environment())
                    running[job.key] = (job, process, time.monotonic())
            if running:
                time.sleep(POLL_SECONDS)
    finally:
        for _, process, _ in running.values():  # the study was interrupted: what runs can be continued later
            process.terminate()
        for _, process, _ in running.values():
            process.wait()
    return failed


def command(job: Job, options: Sequence[str]) -> list[str]:
    """How to train."""
    call = [sys.executable, str(ENTRY_POINT), "fit", "--config", str(job.config), "--runs_dir", str(job.runs_dir)]
    call += ["--requires", "none"]
    if job.begun:
        return [*call, "--resume"]
    seeds = [f"--{key}={job.seed}" for key in ("seed_everything", "model.seed", "data.seed")]
    return [*call, *seeds, *options]


def conclude(jobs: Sequence[Job], failed: dict[tuple[str, int], str], output: Path, title: str) -> int:
    """Writes the report of what is finished, and names what failed."""
    from compresslens.cli.report import report

    folders = [str(job.finished.resolve()) for job in jobs if job.finished is not None]
    for (name, seed), reason in failed.items():
        print(f"study: {name}, seed {seed} failed: {reason}", file=sys.stderr)
    if folders:
        report(folders, Path("runs"), output, title, localization=0.1, distance=0.1)
    return 1 if failed else 0


def _named(job: Job) -> str:
    return f"{job.name}, seed {job.seed}"
