"""Runs the command line for tests: within this process, which saves the imports, or as the process a user starts."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from compresslens.cli import main
from compresslens.cli.requirements import ENTRY_POINT, undistributed_environment

# Two steps of training, one batch to validate and one to test, few images to attack.
SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.precision=32-true",
    "--data.batch_size=4",
    "--data.eval_batch_size=8",
    "--data.num_workers=0",
    "--data.probe_samples=8",
]


@dataclass(frozen=True)
class Answer:
    """What the command line did."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The message of a command line that failed as it should: status 2, one line, no traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.status == 2, self
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err + self.out, self.err
        return lines[0].removeprefix("error: ")


def run(*arguments: str) -> Answer:
    """In this process; see the fixture `workplace`."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = main([str(argument) for argument in arguments])
    finally:
        gc.unfreeze()  # a command line that ends need not look after its garbage; this process goes on
    return Answer(status, out.getvalue(), err.getvalue())


def run_process(*arguments: str, cwd: Path, timeout: float = 240) -> Answer:
    """In a process of its own, as a user does."""
    environment = {**undistributed_environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ENTRY_POINT), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def run_folders(root: Path = Path("runs")) -> list[str]:
    """All run folders below a root, as "name/stamp"."""
    return sorted(f"{folder.parent.name}/{folder.name}" for folder in root.glob("*/2*") if folder.is_dir())
