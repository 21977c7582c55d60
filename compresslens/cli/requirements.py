"""Trains first what a config requires, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from compresslens import runs
from compresslens.cli.configs import CONFIG_DIRECTORY, display, run_name

ENTRY_POINT = CONFIG_DIRECTORY.parent / "train.py"
ABOUT_DATA = re.compile(r"--(data(\.[^=]*)?|model\.(init_args\.)?network\.(init_args\.)?num_classes)(=|$)")


def train_missing(paths: list[Path], runs_dir: Path, overrides: list[str]) -> int:
    """Trains every config of `paths` that has no finished run with a best checkpoint yet.

    The command line's overrides for the data are passed on, so that all models see the same data; an unfinished run
    is continued.

    Args:
        paths: configs, in the order in which they are needed.
        runs_dir: where run folders are kept.
        overrides: the command line's options; see `data_overrides` for those that are passed on.

    Returns:
        0, or the exit status of the training that failed; it has said why.
    """
    for path in paths:
        name = run_name(path)
        latest = runs.latest_run(runs_dir, name)
        if latest is not None and (latest / "checkpoints" / "best.ckpt").is_file():
            continue
        command = [sys.executable, str(ENTRY_POINT), "fit", "--config", str(path), "--runs_dir", str(runs_dir)]
        resume = any(not (folder / runs.FINISHED_FILE).exists() for folder in runs.runs_of(runs_dir, name)[-1:])
        print(
            f"{display(path)} is required and has no finished run: {'resuming' if resume else 'training'} it first",
            flush=True,
        )
        command += ["--resume"] if resume else data_overrides(overrides)
        status = subprocess.run(command, check=False, env=undistributed_environment()).returncode
        if status != 0:
            print(f"the required {display(path)} was not trained: exit status {status}", file=sys.stderr)
            return status if status > 0 else 1
    return 0


def undistributed_environment() -> dict[str, str]:
    """This process' environment without what torchrun or SLURM set for its ranks, and W&B's agent for its run."""
    foreign = ("TORCHELASTIC_", "SLURM_", "COMPRESSLENS_", "WANDB_SWEEP_", "WANDB_RUN_ID")
    ranks = {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
    }
    return {k: v for k, v in os.environ.items() if k not in ranks and not k.startswith(foreign)}


def data_overrides(arguments: list[str]) -> list[str]:
    """The options about the data, with their values: `--data…`, and the network's number of classes, which follows."""
    kept: list[str] = []
    following = False
    for argument in arguments:
        if argument.startswith("--"):  # else it is the value of the option before
            following = ABOUT_DATA.match(argument) is not None
        if following:
            kept.append(argument)
    return kept
