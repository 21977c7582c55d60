"""Finished runs, as their folders have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from compresslens import runs
from compresslens.errors import UserError
from compresslens.study import settings

SCHEMA = 1
NEEDED = ("name", "split", "seed", "metrics", "config")
PER_SAMPLE = ("accuracy/", "cam/", "embedding/", "robustness/cw_")  # metrics with values in samples.parquet
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: of the run.
        name: of the run, the same for all its seeds.
        seed: None if the config does not say.
        results: the content of `results.json`.
    """

    folder: Path
    name: str
    seed: int | None
    results: dict[str, Any]

    @property
    def label(self) -> str:
        """Name and time stamp."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Values per sample, by its index in the split; without rows if none were written.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "samples.parquet"
        if not path.is_file():
            return pd.DataFrame()
        try:
            return pd.read_parquet(path).set_index("index")
        except Exception as error:  # a damaged file can raise anything
            raise _damaged(path, error) from None

    def arrays(self, name: str) -> Arrays | None:
        """What a probe has kept in `figures/<name>.npz`; None if there is no such file.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "figures" / f"{name}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        except Exception as error:  # a damaged file can raise anything
            raise _damaged(path, error) from None

    @property
    def has_reference(self) -> bool:
        """Whether it was held against a network that it came from."""
        return any(metric["reference"] is not None for metric in self.results["metrics"].values())

    @property
    def config(self) -> dict[str, Any]:
        """All that it was trained with; empty if that was not noted."""
        return self.results["config"] or {}

    @property
    def data(self) -> Any:
        """The data set and its options, without those in which runs that are compared may differ."""
        return settings.images(self.config, self.results["split"])

    @property
    def images_seed(self) -> int | None:
        """Runs of the same data are of the same images if this is the same, too."""
        seed = settings.images_seed(self.config)
        return self.seed if seed is None else seed


def find_runs(given: Sequence[str], runs_dir: Path) -> tuple[list[Run], list[str]]:
    """The runs that were asked for, and notes of what was left out.

    Args:
        given: run folders, or names of runs (or the folders that hold all runs of a name), each of which stands for
            the latest finished run of each of its seeds.
        runs_dir: where names are looked up.

    Raises:
        UserError: a run does not exist, is unfinished, measured nothing, was written by another version, is of other
            data than the first, or was trained in another way than one of the same name.
    """
    found: dict[Path, Run] = {}
    notes = []
    for text in given:
        for run in _runs_of(text, runs_dir):
            if run.folder in found:
                notes.append(f"{run.name} ({run.folder.name}) was given twice and counts once")
            found.setdefault(run.folder, run)
    if not found:
        raise UserError("there are no runs to report on: give names or folders of finished runs")
    compared = list(found.values())
    for run in compared[1:]:
        _refuse_other_data(compared[0], run)
    kept = _one_per_seed(compared, notes)
    for run in kept:
        _refuse_other_training(next(first for first in kept if first.name == run.name), run)
    return kept, notes


def load(folder: Path) -> Run:
    """A run by its folder.

    Raises:
        UserError: it is unfinished, measured nothing, was written by another version, or is incomplete.
    """
    if not (folder / runs.FINISHED_FILE).exists():
        raise UserError(f"the run {folder} is not finished: continue it with `train.py --resume`, or leave it out")
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"the run {folder} has no results.json: nothing was measured") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path} has the schema {schema!r}; this version reads {SCHEMA}: run it anew, or leave it out")
    if missing := [key for key in NEEDED if key not in results]:
        raise UserError(f"{path} is damaged: it has no {missing[0]!r}; leave the run out, or make it anew")
    if not (folder / "samples.parquet").is_file() and any(name.startswith(PER_SAMPLE) for name in results["metrics"]):
        raise UserError(f"{folder} has lost its samples.parquet, which its results.json rests on: leave the run out")
    return Run(folder, results["name"], results["seed"], results)


def _runs_of(text: str, runs_dir: Path) -> list[Run]:
    folder = Path(text)
    if (folder / "results.json").is_file() or (folder / "config.yaml").is_file():
        return [load(folder.resolve())]
    holder = (folder if "/" in text else runs_dir / text).resolve()
    folders = runs.runs_of(holder.parent, holder.name)
    if not folders and "/" in text:
        raise UserError(f"{text} {'holds no runs' if folder.is_dir() else 'is no folder'}: give run folders or names")
    if not folders:
        known = sorted(entry.name for entry in runs_dir.iterdir() if entry.is_dir()) if runs_dir.is_dir() else []
        raise UserError(f"there is no run {text!r} in {runs_dir}; there are: {', '.join(known) or 'none'}")
    finished = [folder for folder in folders if (folder / runs.FINISHED_FILE).exists()]
    if not finished:
        raise UserError(f"no run of {holder.name!r} is finished: continue it with `train.py --resume`, or leave it out")
    newest: dict[int | None, Run] = {}
    for folder in finished:  # oldest first
        run = load(folder.resolve())
        newest[run.seed] = run
    return list(newest.values())


def _refuse_other_data(first: Run, run: Run) -> None:
    if run.results["split"] != first.results["split"]:
        raise UserError(
            f"{run.folder} was measured on the {run.results['split']} split, {first.folder} on the "
            f"{first.results['split']} split: they cannot be compared"
        )
    difference = settings.first_difference({"data": run.data}, {"data": first.data})
    if difference is not None:
        raise UserError(
            f"{run.folder} is of other data than {first.folder} ({difference}): they cannot be compared; "
            "make a report of each"
        )


def _refuse_other_training(first: Run, run: Run) -> None:
    difference = settings.first_difference(settings.training(run.config), settings.training(first.config))
    if difference is not None:
        raise UserError(
            f"{run.folder} was trained in another way than {first.folder} ({difference}), so they are no seeds of the "
            f"same model {run.name!r}: train one anew with another --name, or name only the folders that belong "
            "together"
        )


def _one_per_seed(found: Sequence[Run], notes: list[str]) -> list[Run]:
    """Of folders with the same name and seed the newest."""
    newest: dict[tuple[str, int | None], Run] = {}
    for run in sorted(found, key=lambda run: run.folder.name):
        if (run.name, run.seed) in newest:
            notes.append(f"of the runs of {run.name} with seed {run.seed}, only the newest counts")
        newest[run.name, run.seed] = run
    order = list(dict.fromkeys(run.name for run in found))
    return sorted(newest.values(), key=lambda run: (order.index(run.name), run.seed if run.seed is not None else -1))


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read ({reason}): leave the run out, or make it anew")
