"""How long `report.py` takes, how large its page gets, and how much memory it needs.

`python benchmarks/study_report.py RUN [RUN …]`: finished runs with all probes. They are copied under other names and
seeds, with noise on what was measured of each image, until there are as many as wanted: their content means nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from common import say, versions

REPOSITORY = Path(__file__).resolve().parents[1]
NOISE = 0.02
CALL = """
import resource, sys
from compresslens.cli.report import main
status = main(sys.argv[1:])
print("peak kB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""
LIMITS = {(8, 3): (20.0, 8e6, None), (100, 1): (120.0, None, 2**30)}  # models, seeds: seconds, bytes, bytes of memory


def main(arguments: Sequence[str]) -> None:
    """Prints a line for each size, and whether it is within its limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    print(f"one process, {versions(('pandas', 'matplotlib', 'numpy'))}")
    for (models, seeds), limits in LIMITS.items():
        with tempfile.TemporaryDirectory() as folder:
            copies = Path(folder) / "runs"
            for number in range(models):
                for seed in range(seeds):
                    copy(options.runs[number % len(options.runs)].resolve(), copies, f"model_{number:03}", seed)
            say(f"{models} models x {seeds} seeds")
            seconds, memory = write_report(copies, Path(folder) / "report")
            size = (Path(folder) / "report" / "index.html").stat().st_size
        found = (seconds, size, memory)
        within = all(limit is None or value <= limit for value, limit in zip(found, limits, strict=True))
        figures = f"{seconds:.1f} s, page {size / 1e6:.2f} MB, peak memory {memory / 2**20:.0f} MiB"
        print(f"{'PASS' if within else 'FAIL':6}{models} models x {seeds} seeds: {figures}; limits {limits}")


def copy(source: Path, runs_dir: Path, name: str, seed: int) -> None:
    """A run like another, of another name and seed, whose per-sample figures differ a little."""
    generator = np.random.default_rng([seed, *name.encode()])
    folder = runs_dir / name / f"20260101-00000{seed}"
    folder.mkdir(parents=True)
    for entry in ("figures", "config.yaml", "finished"):
        origin = source / entry
        (shutil.copytree if origin.is_dir() else shutil.copy)(origin, folder / entry)
    results = json.loads((source / "results.json").read_text(encoding="utf-8"))
    (folder / "results.json").write_text(json.dumps({**results, "name": name, "seed": seed}), encoding="utf-8")
    samples = pd.read_parquet(source / "samples.parquet")
    for column in samples.select_dtypes("number").columns:
        if samples[column].dtype.kind == "f" and "predicted" not in column and "prediction" not in column:
            samples[column] *= 1 + NOISE * generator.standard_normal(len(samples))
    for column in samples.columns[samples.columns.str.endswith("confidence")]:
        samples[column] = samples[column].clip(0, 1)
    samples.to_parquet(folder / "samples.parquet", index=False)


def write_report(runs_dir: Path, output: Path) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a process that reports on all runs of a folder."""
    names = sorted(entry.name for entry in runs_dir.iterdir())
    began = time.perf_counter()
    call = [sys.executable, "-c", CALL, *names, "--runs_dir", str(runs_dir), "--output", str(output)]
    process = subprocess.run(call, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    (line,) = (line for line in process.stderr.splitlines() if line.startswith("peak kB"))
    return seconds, 1024 * int(line.split()[-1])


if __name__ == "__main__":
    main(sys.argv[1:])
