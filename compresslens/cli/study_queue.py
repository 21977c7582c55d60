"""Which jobs of a study SLURM has, so that nobody trains the same twice."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from compresslens import runs
from compresslens.cli.study_plan import Job
from compresslens.errors import UserError

FILE_NAME = "jobs.json"


def queued(folder: Path) -> dict[str, tuple[str, int]]:
    """The jobs submitted before that wait or run, by their number; none where there is no SLURM to ask.

    Raises:
        UserError: SLURM does not answer, or what was submitted is not known.
    """
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = {number: (str(name), int(seed)) for number, (name, seed) in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"{path}, which says what jobs of this study SLURM has, cannot be read: remove it once squeue shows none"
        ) from None
    if not record or shutil.which("squeue") is None:
        return {}
    answer = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i"], capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        raise UserError(f"cannot ask SLURM for the jobs of this study: {answer.stderr.strip() or 'squeue failed'}")
    there = set(answer.stdout.split())
    return {number: key for number, key in record.items() if number in there}


def remember(folder: Path, jobs: Mapping[str, tuple[str, int]]) -> None:
    """Writes down what SLURM has, by the number of the job."""
    runs.write_json(folder / FILE_NAME, jobs)


def refuse_queued(folder: Path, jobs: Sequence[Job]) -> None:
    """Lets nobody train what SLURM has.

    Raises:
        UserError: one of the jobs waits or runs there.
    """
    keys = {job.key for job in jobs}
    busy = {number: key for number, key in queued(folder).items() if key in keys}
    for name, seed in list(busy.values())[:1]:
        raise UserError(
            f"SLURM has {name}, seed {seed} of this study in its queue; wait for it, or: scancel {' '.join(busy)}"
        )
