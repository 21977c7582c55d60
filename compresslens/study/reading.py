"""Finished runs, as their folders have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from compresslens import runs
from compresslens.errors import UserError

SCHEMA = 1
OF_NO_CONSEQUENCE = ("seed", "num_workers", "batch_size", "eval_batch_size", "download")  # for what is compared


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

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Values per sample, by its index in the split; without rows if none were written."""
        path = self.folder / "samples.parquet"
        return pd.read_parquet(path).set_index("index") if path.is_file() else pd.DataFrame()

    @property
    def has_reference(self) -> bool:
        """Whether it was held against a network that it came from."""
        return any(metric["reference"] is not None for metric in self.results["metrics"].values())

    @property
    def data(self) -> Any:
        """The data set and its options, without those in which runs may differ."""
        data = (self.results["config"] or {}).get("data")
        if not isinstance(data, dict):
            return data
        plain = json.loads(json.dumps(data))
        for options in (plain, plain.get("init_args") or {}):
            for option in OF_NO_CONSEQUENCE:
                options.pop(option, None)
        return plain


def find_runs(given: Sequence[str], runs_dir: Path) -> tuple[list[Run], list[str]]:
    """The runs that were asked for, and notes of what was left out.

    Args:
        given: run folders, or names of runs, each of which stands for the latest finished run of each of its seeds.
        runs_dir: where names are looked up.

    Raises:
        UserError: a run does not exist, is unfinished, measured nothing, was written by another version, or is of other
            data than the first.
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
    return _one_per_seed(compared, notes), notes


def load(folder: Path) -> Run:
    """A run by its folder.

    Raises:
        UserError: it is unfinished, measured nothing, or was written by another version.
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
    return Run(folder, results["name"], results["seed"], results)


def _runs_of(text: str, runs_dir: Path) -> list[Run]:
    folder = Path(text)
    if "/" in text or (folder / "results.json").is_file():
        if not folder.is_dir():
            raise UserError(f"there is no run folder {text}")
        return [load(folder.resolve())]
    folders = runs.runs_of(runs_dir, text)
    if not folders:
        known = sorted(entry.name for entry in runs_dir.iterdir() if entry.is_dir()) if runs_dir.is_dir() else []
        raise UserError(f"there is no run {text!r} in {runs_dir}; there are: {', '.join(known) or 'none'}")
    finished = [folder for folder in folders if (folder / runs.FINISHED_FILE).exists()]
    if not finished:
        raise UserError(f"no run of {text!r} in {runs_dir} is finished: continue it with `train.py --resume`")
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
    if run.data != first.data:
        raise UserError(f"{run.folder} is of other data than {first.folder}: they cannot be compared")


def _one_per_seed(found: Sequence[Run], notes: list[str]) -> list[Run]:
    """Of folders with the same name and seed the newest."""
    newest: dict[tuple[str, int | None], Run] = {}
    for run in sorted(found, key=lambda run: run.folder.name):
        if (run.name, run.seed) in newest:
            notes.append(f"of the runs of {run.name} with seed {run.seed}, only the newest counts")
        newest[run.name, run.seed] = run
    order = list(dict.fromkeys(run.name for run in found))
    return sorted(newest.values(), key=lambda run: (order.index(run.name), run.seed if run.seed is not None else -1))
