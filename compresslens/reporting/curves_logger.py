"""Writes every logged number of a run to `metrics.csv`."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from compresslens import runs

FILE_NAME = "metrics.csv"
HEADER = b"step,epoch,name,value\n"


class CurvesLogger(Logger):
    """Appends one row `step,epoch,name,value` per logged number to `<run folder>/metrics.csv`.

    Every row is in the file when `log_metrics` returns. If it cannot be written (disk full, folder gone) there is one
    warning, training goes on, and the rows are written as soon as that is possible again. Only rank zero writes.
    What is not a number (images, tables) is passed over.

    A run that continues from a checkpoint calls :meth:`rewind` before anything is logged; then the file ends up as if
    the run had never stopped.

    Args:
        save_dir: folder of the file; the folder of the current run if None.
    """

    def __init__(self, save_dir: str | None = None) -> None:
        super().__init__()
        self._save_dir = save_dir
        self._started = False
        self._size = 0  # bytes of the file that hold complete rows
        self._written = 0  # rows in the file
        self._pending: list[bytes] = []  # rows that could not be written yet
        self._kept: set[tuple[int, str]] = set()  # rows after the checkpoint that are in the file already
        self._warned = False

    @property
    def path(self) -> Path:
        """The file."""
        return (runs.current_run() if self._save_dir is None else Path(self._save_dir)) / FILE_NAME

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self.path.parent)

    @property
    def name(self) -> str:
        """No folder level of its own."""
        return ""

    @property
    def version(self) -> str:
        """No folder level of its own."""
        return ""

    @property
    def rows(self) -> int:
        """Number of rows logged so far, including those of the run that this one continues; 0 on other ranks."""
        self._start()
        return self._written + len(self._pending)

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint needs to know to :meth:`rewind`."""
        return {"rows": self.rows}

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Appends the numbers. Lightning adds their "epoch", which becomes a column."""
        self._start()
        epoch = metrics.get("epoch")
        for name, value in metrics.items():
            try:
                number = float(value)
            except (TypeError, ValueError, RuntimeError):
                continue
            if name == "epoch":
                continue
            if step is not None and (step, name) in self._kept:
                self._kept.remove((step, name))
                continue
            self._pending.append(_row("" if step is None else step, "" if epoch is None else int(epoch), name, number))
        self.save()

    @rank_zero_only
    def save(self) -> None:
        """Writes what could not be written before."""
        if not self._pending:
            return
        try:
            self._append()
        except OSError as error:
            if not self._warned:
                warnings.warn(f"cannot write {FILE_NAME} ({error.strerror}): the run goes on without it", stacklevel=2)
            self._warned = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what could not be written before."""
        self.save()

    @rank_zero_only
    def rewind(self, rows: int, step: int = 0) -> None:
        """Removes the rows that the continued run will log again.

        Lightning saves a checkpoint at the end of a batch *before* it logs that batch's metrics (and at the end of an
        epoch before the epoch's), and does not log them again after loading it. So the rows to keep are those that
        were there when the checkpoint was saved, and of the later ones those of steps before `step`. If the continued
        run logs one of the latter again, that row is dropped then.

        Args:
            rows: :attr:`rows` when the checkpoint was saved.
            step: `trainer.global_step` after loading the checkpoint; Lightning logs the first batch as step 0.
        """
        self._start()
        self.save()
        if not self.path.is_file():
            return
        content = self.path.read_bytes()[: self._size]
        lines = content.splitlines(keepends=True)[1:]
        if len(lines) < rows:
            warnings.warn(f"{FILE_NAME} has {len(lines)} rows, but the checkpoint was saved after {rows}", stacklevel=2)
        late = [line for line in lines[rows:] if _step(line) < step]
        kept = b"".join([HEADER, *lines[:rows], *late])
        if kept != content:
            runs.write_atomically(self.path, partial(_write, kept))
        self._size, self._written = len(kept), len(lines[:rows]) + len(late)
        self._kept = {(_step(line), _name(line)) for line in late}

    def _start(self) -> None:
        """Looks at the file of a run that is being continued."""
        if self._started or _rank() != 0:
            return
        self._started = True
        path = self.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
        except OSError:
            return  # writing will fail too, and warn
        complete = content[: content.rfind(b"\n") + 1]
        self._size, self._written = len(complete), max(0, complete.count(b"\n") - 1)

    def _append(self) -> None:
        """Writes the pending rows.

        Raises:
            OSError: nothing counts as written; a part that was is overwritten the next time.
        """
        with self.path.open("ab") as file:
            if file.seek(0, os.SEEK_END) > self._size:
                file.truncate(self._size)
            content = (b"" if file.seek(0, os.SEEK_END) else HEADER) + b"".join(self._pending)
            file.write(content)
            file.flush()
            self._size = file.tell()
        self._written += len(self._pending)
        self._pending = []


def _rank() -> int:
    return getattr(rank_zero_only, "rank", 0)


def _row(*values: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(repr(v) if isinstance(v, float) else v for v in values)
    return text.getvalue().encode()


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _step(line: bytes) -> int:
    return int(line.split(b",", 1)[0] or -1)


def _name(line: bytes) -> str:
    return next(csv.reader([line.decode()]))[2]
