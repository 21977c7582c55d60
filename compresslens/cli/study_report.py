"""How a study ends: the report of what is finished, and the names of what is not."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from compresslens.cli.study_plan import Job
from compresslens.errors import UserError


def conclude(
    jobs: Sequence[Job], failed: Mapping[tuple[str, int], str], output: Path, title: str, limits: Mapping[str, float]
) -> int:
    """Names what failed, and writes the report of what is finished.

    Args:
        jobs: all of the study.
        failed: why a job was not done, by its key.
        output: folder of the report.
        title: of the report.
        limits: see `compresslens.cli.thresholds`.

    Returns:
        The exit status: 1 if a job failed, or the report cannot be made, which is then said.
    """
    from compresslens.cli.report import report

    for (name, seed), reason in failed.items():
        print(f"study: {name}, seed {seed} failed: {reason}", file=sys.stderr, flush=True)
    folders = [str(job.finished.resolve()) for job in jobs if job.finished is not None]
    try:
        if folders:
            report(folders, output.parent, output, title, limits["localization"], limits["distance"])
    except UserError as error:
        print(f"study: no report: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    return 1 if failed else 0
