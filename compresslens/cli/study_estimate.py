"""How long a study will take, from what its trainings took before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from compresslens.cli.study_plan import Job


def seconds_of(job: Job, runs_dir: Path) -> float | None:
    """What such a job took before, with any seed, in this study, another one or outside; None if nobody knows.

    That is the fit and the probes; a process also takes some 10 to 20 seconds to start and to load.
    """
    candidates = [
        *sorted(job.runs_dir.parent.glob(f"seed*/{job.name}/latest/results.json")),
        *sorted(runs_dir.glob(f"*/seed*/{job.name}/latest/results.json")),
        runs_dir / job.name / "latest/results.json",
    ]
    for path in candidates:
        try:
            return float(sum(json.loads(path.read_text(encoding="utf-8"))["wall_seconds"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def seconds_to_go(jobs: Sequence[Job], seconds: Mapping[tuple[str, int], float], at_a_time: int) -> float:
    """When the last unfinished job ends, if so many are run at a time, each after what it requires.

    Args:
        jobs: in the order in which they are begun.
        seconds: of those that are not finished.
        at_a_time: at least 1.
    """
    waiting = [job for job in jobs if job.key in seconds]
    running: dict[tuple[str, int], float] = {}  # when it ends
    now = 0.0
    while waiting or running:
        for job in list(waiting):
            busy = {other.key for other in waiting} | set(running)
            if len(running) < at_a_time and not any((name, job.seed) in busy for name in job.requires):
                waiting.remove(job)
                running[job.key] = now + seconds[job.key]
        now = min(running.values())
        running = {key: end for key, end in running.items() if end > now}
    return now
