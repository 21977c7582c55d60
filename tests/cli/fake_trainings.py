"""Trainings that only copy a finished run, made beforehand, to where the study wants it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from compresslens.cli.study_plan import Job
from tests.study.study_runs import write_run

COPY = """
import shutil, sys
made, place, log, name = sys.argv[1:5]
shutil.copytree(made, place, symlinks=True, dirs_exist_ok=True)
with open(log, "a") as file:
    print(name, file=file)
"""
STAMP = "20260101-000000"


class FakeTrainings:
    """Takes the place of `study_local.command`.

    Attributes:
        failing: what fails, by key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failing: set[tuple[str, int]] = set()

    def command(self, job: Job, options: Sequence[str], resume: bool) -> list[str]:
        """Copies a run."""
        if job.key in self.failing:
            return [sys.executable, "-c", "raise SystemExit(3)"]
        made = self.folder / "made" / f"seed{job.seed}"
        if not (made / job.name).exists():
            as_trained(write_run(made, job.name, seed=job.seed, stamp=STAMP))
        paths = [made / job.name, job.runs_dir / job.name, self.folder / "log"]
        return [sys.executable, "-c", COPY, *map(str, paths), f"{job.name} {job.seed}"]

    def trained(self) -> list[tuple[str, int]]:
        """What was trained, in this order."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.is_file() else []
        return [(name, int(seed)) for name, seed in map(str.split, lines)]


def as_trained(run: Path) -> None:
    """Adds what others start from."""
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.ckpt").touch()
    (run.parent / "latest").symlink_to(run.name)


def write_two_configs(folder: Path) -> str:
    """A study of two experiments, one of which requires a third."""
    (folder / "base.yaml").write_text("{}")
    (folder / "prune.yaml").write_text("requires: [base.yaml]")
    (folder / "qat.yaml").write_text("{}")
    path = folder / "mine.yaml"
    path.write_text("experiments: [prune.yaml, qat.yaml]\nseeds: [0, 3]\n")
    return str(path)
