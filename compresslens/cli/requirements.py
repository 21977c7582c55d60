"""Trains first what a config requires, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from compresslens import runs
from compresslens.cli.configs import display
from compresslens.errors import UserError


def train_missing(paths: list[Path], runs_dir: Path, overrides: list[str]) -> None:
    """Trains every config of `paths` that has no finished run with a best checkpoint yet.

    The command line's overrides for the data are passed on, so that all models see the same data; an unfinished run
    is continued.

    Args:
        paths: configs, in the order in which they are needed.
        runs_dir: where run folders are kept.
        overrides: the command line's options; those beginning with `--data` are passed on.

    Raises:
        UserError: the training of a required config failed.
    """
    for path in paths:
        latest = runs.latest_run(runs_dir, path.stem)
        if latest is not None and (latest / "checkpoints" / "best.ckpt").is_file():
            continue
        command = [sys.executable, sys.argv[0], "fit", "--config", str(path), "--runs_dir", str(runs_dir)]
        resume = any(not (folder / runs.FINISHED_FILE).exists() for folder in runs.runs_of(runs_dir, path.stem)[-1:])
        print(
            f"{display(path)} is required and has no finished run: {'resuming' if resume else 'training'} it first",
            flush=True,
        )
        command += ["--resume"] if resume else data_overrides(overrides)
        status = subprocess.run(command, check=False, env=undistributed_environment()).returncode
        if status != 0:
            raise UserError(f"training the required {display(path)} failed with exit status {status}; see above")


def undistributed_environment() -> dict[str, str]:
    """This process' environment without what torchrun or SLURM set for its ranks."""
    foreign = ("TORCHELASTIC_", "SLURM_", "COMPRESSLENS_")
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
    """The options that begin with `--data`, with their values."""
    kept: list[str] = []
    following = False
    for argument in arguments:
        if argument.startswith("--"):
            following = argument.startswith(("--data.", "--data="))  # its value may come as the next argument
            following = following or argument == "--data"
        if following:
            kept.append(argument)
    return kept
