"""SLURM's programs for tests: `sbatch` keeps the script it is given, `srun` starts the processes on this machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

SBATCH = """
number=$((100 + $(ls "$CLUSTER" | grep -c '[.]job$')))
if [ "$number" = "$(cat "$CLUSTER/refused" 2>/dev/null)" ]; then echo "sbatch: error: invalid partition" >&2; exit 1; fi
cat "$1" > "$CLUSTER/$number.job"
env > "$CLUSTER/$number.env"
echo "Submitted batch job $number"
"""
SRUN = """
while [ $# -gt 0 ]; do
  case "$1" in
    --output) out=$2; shift 2 ;;
    --error) err=$2; shift 2 ;;
    --*) shift ;;
    *) break ;;
  esac
done
export SLURM_NTASKS=${FAKE_TASKS:-1} SLURM_NTASKS_PER_NODE=${FAKE_TASKS:-1} SLURM_NNODES=1 SLURM_NODEID=0
export SLURM_NODELIST=127.0.0.1 SLURM_JOB_NODELIST=127.0.0.1 SLURM_JOB_NUM_NODES=1
task=0
pids=
while [ $task -lt $SLURM_NTASKS ]; do
  o=$(echo "$out" | sed "s/%j/$SLURM_JOB_ID/; s/%t/$task/")
  e=$(echo "$err" | sed "s/%j/$SLURM_JOB_ID/; s/%t/$task/")
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" >> "$o" 2>> "$e" &
  pids="$pids $!"
  task=$((task + 1))
done
status=0
for pid in $pids; do wait $pid || status=$?; done
exit $status
"""
PROGRAMS = {
    "sbatch": SBATCH,
    "srun": SRUN,
    "squeue": 'cat "$CLUSTER/queue" 2>/dev/null; true',
    "scancel": 'echo "$@" >> "$CLUSTER/cancelled"',
    "scontrol": 'echo "$@" >> "$CLUSTER/requeued"',
}


class FakeSlurm:
    """A cluster of this machine; its programs are found once `path` comes first in PATH and CLUSTER is `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cluster"
        self.path = folder / "programs"
        self.folder.mkdir()
        self.path.mkdir()
        for name, text in PROGRAMS.items():
            (self.path / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.path / name).chmod(0o755)

    def scripts(self) -> dict[int, str]:
        """What was submitted."""
        return {int(path.stem): path.read_text() for path in sorted(self.folder.glob("*.job"))}

    def flags(self, number: int) -> dict[str, str]:
        """The parameters of a job, as sbatch reads them."""
        found = {}
        for line in re.findall(r"^#SBATCH --(.*)$", self.scripts()[number], re.MULTILINE):
            key, _, value = line.partition("=")
            (found[key],) = shlex.split(value) or [""]
        return found

    def run(self, **environment: str) -> dict[int, int | None]:
        """Runs the jobs; returns their exit statuses, None for those that never could start."""
        statuses: dict[int, int | None] = {}
        for number in self.scripts():
            kind, _, needed = self.flags(number).get("dependency", "").partition(":")
            before = [statuses[int(text)] for text in needed.split(":") if text]
            if kind == "afterok" and any(status != 0 for status in before):
                statuses[number] = None
                continue
            statuses[number] = self.start(number, **environment).wait()
        return statuses

    def start(self, number: int, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a job."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        job = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NAME": self.flags(number)["job-name"]}
        return subprocess.Popen(["sh", str(self.folder / f"{number}.job")], env={**clean, **job, **environment})
