"""How a study ends: the report of what is finished, and the names of what is not."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from compresslens.cli.study_plan import Job


def conclude(
    jobs: Sequence[Job], failed: Mapping[tuple[str, int], str], output: Path, title: str, limits: Mapping[str, float]
) -> int:
    """Names what failed, and writes the report of what is finished; returns the exit status.

    Args:
        jobs: all of the study.
        failed: why a job was not done, by its key.
        output: folder of the report.
        title: of the report.
        limits: see `compresslens.cli.thresholds`.
    """
    from compresslens.cli.report import report

    for (name, seed), reason in failed.items():
        print(f"study: {name}, seed {seed} failed: {reason}", file=sys.stderr, flush=True)
    folders = [str(job.finished.resolve()) for job in jobs if job.finished is not None]
    if folders:
        report(folders, output.parent, output, title, limits["localization"], limits["distance"])
    return 1 if failed else 0
