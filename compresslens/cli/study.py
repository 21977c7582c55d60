"""`python study.py --config study_resnet18.yaml`: experiments × seeds, then the report."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from compresslens import runs
from compresslens.cli.study_estimate import seconds_of, seconds_to_go
from compresslens.cli.study_local import execute
from compresslens.cli.study_options import refuse_other_options, remember_options
from compresslens.cli.study_plan import Job, plan, read_study
from compresslens.cli.study_report import conclude
from compresslens.cli.thresholds import add_threshold_options, thresholds
from compresslens.errors import UserError

EPILOG = (
    "Options of train.py for every experiment stand behind two dashes: study.py --config X -- --trainer.max_epochs=1"
)


def main(arguments: Sequence[str]) -> int:
    """Runs a study; returns the exit status: 1 if an experiment failed, 2 if the study cannot begin."""
    own, for_train = list(arguments), []
    if "--" in own:
        at = own.index("--")
        own, for_train = own[:at], own[at + 1 :]
    options, unknown = _parser().parse_known_args(own)
    try:
        if unknown:
            raise UserError(f"unknown option {unknown[0]}; see --help; options of train.py stand behind --")
        with _stopped_by_signals():
            return run(options, for_train)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("interrupted: the same command goes on where this stopped", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)


def run(options: argparse.Namespace, for_train: Sequence[str]) -> int:
    """Plans, trains and reports; returns the exit status.

    Raises:
        UserError: wrong options, others than those of the runs that are there, or something else works on them.
    """
    study = read_study(options.config)
    seeds = study.seeds if options.seeds is None else options.seeds
    study = replace(study, seeds=seeds, options=[*study.options, *for_train])
    limits = thresholds(vars(options), study.limits)
    jobs = plan(study, options.runs_dir)
    folder = options.runs_dir / study.name
    refuse_other_options(folder, study.options)
    output = options.output or folder / "report"
    if options.launcher == "slurm":
        from compresslens.cli import study_slurm

        resources = study_slurm.resources_of(options, study.options)
        show(jobs, options.runs_dir, len(jobs), "if all run at once")
        if options.dry_run:
            study_slurm.show(resources)
            return 0
        with held(jobs):
            remember_options(folder, study.options)
            return study_slurm.submit(study, jobs, resources, output, limits)
    if given := [name for name in ("partition", "gpus_per_node", "nodes", "hours", "slurm") if getattr(options, name)]:
        raise UserError(f"--{given[0]} is for --launcher slurm")
    at_a_time = 1 if options.jobs is None else options.jobs
    if at_a_time < 1:
        raise UserError(f"--jobs is {at_a_time}; it must be at least 1")
    show(jobs, options.runs_dir, at_a_time, "to go")
    if options.dry_run:
        return 0
    with held(jobs):
        remember_options(folder, study.options)
        failed = execute(jobs, study.options, at_a_time)
        return conclude(jobs, failed, output, study.name, limits)


def show(jobs: Sequence[Job], runs_dir: Path, at_a_time: int, when: str) -> None:
    """Prints the plan, with what each job took before."""
    known: dict[tuple[str, int], float] = {}
    unknown = 0
    print(f"{'experiment':34}{'seed':>5}  {'state':12}{'minutes, as before':>20}")
    for job in jobs:
        state = "finished" if job.finished else "to continue" if job.begun else "to do"
        seconds = seconds_of(job, runs_dir)
        if state != "finished":
            unknown += seconds is None
            known[job.key] = seconds or 0.0
        print(f"{job.name:34}{job.seed:>5}  {state:12}{'unknown' if seconds is None else f'{seconds / 60:.1f}':>20}")
    if not known:
        left = "nothing left to train"
    elif unknown == len(known):
        left = "no experience how long"
    else:
        left = f"about {seconds_to_go(jobs, known, at_a_time) / 60:.0f} minutes {when}"
        left += f", {unknown} of them unknown" if unknown else ""
    print(f"{len(jobs)} jobs, {left}", flush=True)


@contextmanager
def held(jobs: Sequence[Job]) -> Iterator[None]:
    """Keeps other studies from the runs of these jobs.

    Raises:
        UserError: another process, or SLURM, has them; or their folder cannot be written.
    """
    folders = list(dict.fromkeys(job.runs_dir for job in jobs))
    try:
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                runs.lock(folder)
            except OSError as error:
                raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --runs_dir") from None
        if any((folder.parent / "slurm").is_dir() for folder in folders):
            from compresslens.cli.study_queue import refuse_queued

            refuse_queued(folders[0].parent / "slurm", jobs)
        yield
    finally:
        for folder in folders:
            runs.release(folder)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal stop the study as Ctrl-C does, so that no training is left behind."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    # What is ignored (nohup) stays so.
    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="study.py", description="Experiments × seeds, then the report.", epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="NAME", help="a study in configs/studies/, or a path")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the study")
    parser.add_argument("--jobs", type=int, help="trainings at a time on this machine (1)")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="where run folders are kept (runs)")
    parser.add_argument("--output", type=Path, help="folder of the report (<runs_dir>/<study>/report)")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    add_threshold_options(parser)
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="where to train (local)")
    slurm = parser.add_argument_group("with --launcher slurm, for each training")
    slurm.add_argument("--partition", help="of the cluster")
    slurm.add_argument("--nodes", type=int, help="number of nodes (1)")
    slurm.add_argument("--gpus_per_node", type=int, help="GPUs, and so processes, on each node (0: one on the CPU)")
    slurm.add_argument("--hours", type=float, help="time limit (24); a training that reaches it is queued again")
    slurm.add_argument("--slurm", nargs="+", action="extend", metavar="KEY=VALUE", help="more options of sbatch")
    return parser
