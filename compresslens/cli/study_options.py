"""The options of train.py with which the runs of a study were begun: those that are kept must have the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from compresslens import runs
from compresslens.cli.study_queue import queued
from compresslens.errors import UserError

FILE_NAME = "options.json"


def refuse_other_options(folder: Path, options: Sequence[str]) -> None:
    """Keeps runs of other options out of a study.

    Args:
        folder: of the study; it need not be there.
        options: of train.py, for all experiments.

    Raises:
        UserError: something was begun there, or waits in SLURM's queue, with other options.
    """
    before, now = _recorded(folder), _plain(options)
    if before == now or not (any(folder.glob("seed*/*/*/config.yaml")) or queued(folder / "slurm")):
        return
    raise UserError(
        f"the runs in {folder} were begun with other options of train.py ({_difference(before, now)}): give the same, "
        "choose another --runs_dir, or remove the folder"
    )


def remember_options(folder: Path, options: Sequence[str]) -> None:
    """Writes down with which options the runs of a study are begun.

    Raises:
        UserError: the folder cannot be written.
    """
    if _recorded(folder) == _plain(options):
        return
    try:
        runs.write_json(folder / FILE_NAME, {"options": _plain(options)})
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --runs_dir") from None


def _recorded(folder: Path) -> list[str] | None:
    try:
        found = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))["options"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, list) else None


def _plain(options: Sequence[str]) -> list[str]:
    return [runs.without_home(option) for option in options]


def _difference(before: Sequence[str] | None, now: Sequence[str]) -> str:
    if before is None:
        return f"not known, for lack of a readable {FILE_NAME}"
    gone, new = ([option for option in some if option not in others] for some, others in ((before, now), (now, before)))
    if not gone and not new:
        return f"in another order: {' '.join(before)}"
    return "; ".join(f"only {when}: {' '.join(some)}" for when, some in (("then", gone), ("now", new)) if some)
