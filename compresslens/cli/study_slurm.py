"""A study on a cluster: every training is a SLURM job that waits for those it requires; the report comes last.

Tried with the programs of SLURM replaced by some that note what they are given and run it, not on a cluster.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresslens import runs
from compresslens.cli.configs import CONFIG_DIRECTORY
from compresslens.cli.study_local import command
from compresslens.cli.study_plan import Job, Study
from compresslens.cli.study_queue import queued, remember
from compresslens.cli.study_report import conclude
from compresslens.cli.study_task import Conclusion, Training
from compresslens.errors import UserError

REPORT_MINUTES = 60
RESTARTS = 20  # after as many time limits a training counts as failed
# What other options decide. One process for each GPU is what Lightning expects.
OWN_KEYS = {
    **{"partition": "--partition", "nodes": "--nodes", "time": "--hours", "gpus_per_node": "--gpus_per_node"},
    **{"ntasks_per_node": "--gpus_per_node", "num_gpus": "--gpus_per_node", "gpus_per_task": "--gpus_per_node"},
    **dict.fromkeys(("job_name", "dependency", "additional_parameters", "array_parallelism", "use_srun"), "the study"),
}
OWN_OPTIONS = ("--trainer.devices", "--trainer.num_nodes", "--trainer.accelerator")


@dataclass(frozen=True)
class Resources:
    """Of each training.

    Attributes:
        nodes: at least 1.
        gpus_per_node: as many processes run on a node; 0 for one without a GPU.
        sbatch: parameters of submitit's SlurmExecutor.
        report: the same for the report.
    """

    nodes: int
    gpus_per_node: int
    sbatch: Mapping[str, Any]
    report: Mapping[str, Any]

    def train_options(self) -> list[str]:
        """What Lightning must know of it."""
        devices = [f"--trainer.devices={max(1, self.gpus_per_node)}", f"--trainer.num_nodes={self.nodes}"]
        return [*devices, f"--trainer.accelerator={'gpu' if self.gpus_per_node else 'cpu'}"]


def resources_of(options: argparse.Namespace, for_train: Sequence[str]) -> Resources:
    """Reads the command line.

    Raises:
        UserError: submitit is missing, or an option is wrong.
    """
    slurm_executor()
    nodes = 1 if options.nodes is None else options.nodes
    gpus = options.gpus_per_node or 0
    hours = 24.0 if options.hours is None else options.hours
    if options.jobs is not None:
        raise UserError("--jobs is for this machine; SLURM decides itself how many jobs run at a time")
    if nodes < 1 or gpus < 0 or not 0 < hours < float("inf"):
        raise UserError("--nodes must be at least 1, --gpus_per_node at least 0, --hours more than 0")
    if own := [option for option in for_train if option.partition("=")[0] in OWN_OPTIONS]:
        raise UserError(f"{own[0]} follows from --gpus_per_node and --nodes; leave it out")
    common = _extra(options.slurm or [])
    if options.partition is not None:
        common["partition"] = options.partition
    tasks = {"nodes": nodes, "ntasks_per_node": max(1, gpus), "time": max(1, round(hours * 60))}
    # A process that has failed ends the others of its job, which would wait for it.
    kill = {"srun_args": [*common.get("srun_args", []), "--kill-on-bad-exit=1"]}
    sbatch = {**common, **tasks, **kill, **({"gpus_per_node": gpus} if gpus else {})}
    report = {**common, "nodes": 1, "ntasks_per_node": 1, "time": REPORT_MINUTES}
    return Resources(nodes, gpus, sbatch, report)


def slurm_executor() -> Any:
    """submitit's executor.

    Raises:
        UserError: it is not installed.
    """
    try:
        from submitit import SlurmExecutor
    except ModuleNotFoundError:
        raise UserError("--launcher slurm needs submitit: pip install 'compresslens[slurm]'") from None
    return SlurmExecutor


def show(resources: Resources) -> None:
    """Prints the parameters of sbatch, as submitit calls them."""
    for kind, values in (("each training", resources.sbatch), ("the report", resources.report)):
        print(f"sbatch, {kind}: {' '.join(f'{key}={value}' for key, value in sorted(values.items()))}")
    print(f"train.py, each training: {' '.join(resources.train_options())}")


def submit(study: Study, jobs: Sequence[Job], resources: Resources, output: Path, limits: Mapping[str, float]) -> int:
    """Submits what is not finished, and the report; if all is finished, the report is made here.

    Returns:
        The exit status.

    Raises:
        UserError: SLURM refuses a job; those already submitted are cancelled.
    """
    jobs = [Job(job.config, job.seed, job.runs_dir.resolve(), job.requires) for job in jobs]
    folder = jobs[0].runs_dir.parent / "slurm"
    before = queued(folder)
    numbers: dict[tuple[str, int], str] = {}
    handles: list[Any] = []
    try:
        for job in (job for job in jobs if job.finished is None):
            options = resources.train_options()
            start, resume = ([*command(job, study.options, again), *options] for again in (False, True))
            needed = [numbers[name, job.seed] for name in job.requires if (name, job.seed) in numbers]
            parameters = {**resources.sbatch, "job_name": f"{study.name}-{job.name}-{job.seed}"}
            if needed:
                parameters["dependency"] = f"afterok:{':'.join(needed)}"
                unknown = parameters.get("additional_parameters", {})
                parameters["additional_parameters"] = {**unknown, "kill-on-invalid-dep": "yes"}
            handles.append(_submit(folder, parameters, Training(job, start, resume, job.begun)))
            numbers[job.key] = handles[-1].job_id
            remember(folder, {**before, **{number: key for key, number in numbers.items()}})
        if not numbers:
            return conclude(jobs, {}, output, study.name, limits)
        parameters = {**resources.report, "job_name": f"{study.name}-report"}
        parameters["dependency"] = f"afterany:{':'.join(numbers.values())}"
        logs = {key: runs.without_home(str(folder / f"{number}_0_log.err")) for key, number in numbers.items()}
        handles.append(_submit(folder, parameters, Conclusion(jobs, logs, output.resolve(), study.name, limits)))
    except BaseException:
        for handle in handles:
            with suppress(OSError):
                handle.cancel(check=False)
        raise
    for (name, seed), number in numbers.items():
        print(f"job {number}: {name}, seed {seed}")
    print(f"job {handles[-1].job_id}: the report, {output}")
    print(f"logs: {runs.without_home(str(folder))}", flush=True)
    return 0


def _submit(folder: Path, parameters: Mapping[str, Any], task: Any) -> Any:
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    here = shlex.quote(str(CONFIG_DIRECTORY.parent))  # for the job to find this package where it is not installed
    setup = [f"export PYTHONPATH={here}${{PYTHONPATH:+:$PYTHONPATH}}", *parameters.get("setup", [])]
    try:
        executor = slurm_executor()(folder, max_num_timeout=RESTARTS)
        executor.update_parameters(**{**parameters, "setup": setup})
        with clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext():  # not this job's own nodes and tasks
            return executor.submit(task)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"SLURM refuses the job: {error}") from None
    except FileNotFoundError as error:
        raise UserError(f"there is no {error.filename} here; submit the study where SLURM's programs are") from None
    except RuntimeError:
        raise UserError("there is no srun here; submit the study where SLURM's programs are") from None


def _extra(texts: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` as parameters of submitit; keys that it does not know are for sbatch as they are."""
    from submitit.slurm.slurm import SlurmExecutor

    known: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.lstrip("-").replace("-", "_")
        if not key or not equals:
            raise UserError(f"--slurm takes KEY=VALUE, got {text!r}")
        if key in OWN_KEYS:
            raise UserError(f"--slurm {key}: that is decided by {OWN_KEYS[key]}")
        if key in ("setup", "teardown"):
            known[key] = [*known.get(key, []), value]
        elif key == "srun_args":
            known[key] = shlex.split(value)
        elif key in SlurmExecutor._valid_parameters():
            known[key] = _value(value)
        else:
            known.setdefault("additional_parameters", {})[key.replace("_", "-")] = _value(value)
    return known


def _value(text: str) -> bool | int | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text
