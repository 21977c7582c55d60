"""What a study consists of: experiments × seeds, in an order in which each finds what it requires."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresslens import runs
from compresslens.cli.configs import (
    CONFIG_DIRECTORY,
    config_chain,
    display,
    find_config,
    read_config,
    requirements,
    run_name,
)
from compresslens.errors import UserError

KEYS = ("experiments", "seeds", "options")


@dataclass(frozen=True)
class Job:
    """A training that a study needs.

    Attributes:
        config: its file.
        seed: of everything random in it.
        runs_dir: where its run folder is, together with those of the same seed.
        requires: names of the runs of the same seed that it starts from.
    """

    config: Path
    seed: int
    runs_dir: Path
    requires: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the run."""
        return run_name(self.config)

    @property
    def key(self) -> tuple[str, int]:
        """What it is known by in the study."""
        return self.name, self.seed

    @property
    def finished(self) -> Path | None:
        """Its newest finished run that can be built on."""
        latest = runs.latest_run(self.runs_dir, self.name)
        return latest if latest is not None and (latest / "checkpoints" / "best.ckpt").is_file() else None

    @property
    def begun(self) -> bool:
        """Whether its newest run is unfinished, so that it can be continued."""
        newest = runs.runs_of(self.runs_dir, self.name)[-1:]
        return any(not (folder / runs.FINISHED_FILE).exists() for folder in newest)


@dataclass(frozen=True)
class Study:
    """A study's file.

    Attributes:
        name: the file's stem.
        experiments: configs.
        seeds: at least one.
        options: of train.py, for all experiments.
    """

    name: str
    experiments: Sequence[Path]
    seeds: Sequence[int]
    options: Sequence[str]


def read_study(text: str) -> Study:
    """A study by the name of its file, in `configs/studies/` or by path.

    Raises:
        UserError: there is no such file, or it is not a study.
    """
    name = text if text.endswith((".yaml", ".yml")) else f"{text}.yaml"
    shipped = CONFIG_DIRECTORY / "studies" / name
    path = shipped if "/" not in text and shipped.is_file() else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in (CONFIG_DIRECTORY / "studies").glob("*.yaml")))
        raise UserError(f"no study {text!r}; there are: {known}. Anything with a slash is a path")
    content = read_config(path)
    if unknown := sorted(set(content) - set(KEYS)):
        raise UserError(f"{display(path)}: unknown key {unknown[0]!r}; a study has {', '.join(KEYS)}")
    experiments, seeds, options = content.get("experiments"), content.get("seeds", [0]), content.get("options", [])
    if not _is_list(experiments, str) or not experiments:
        raise UserError(f"{display(path)}: experiments must be a list of configs")
    if not _is_list(seeds, int) or not seeds or min(seeds) < 0:
        raise UserError(f"{display(path)}: seeds must be a list of non-negative numbers")
    if not _is_list(options, str):
        raise UserError(f"{display(path)}: options must be a list of texts such as --trainer.max_epochs=1")
    return Study(
        path.stem, [find_config(name, path.parent) for name in experiments], list(dict.fromkeys(seeds)), options
    )


def plan(study: Study, runs_dir: Path) -> list[Job]:
    """All jobs of a study; each stands behind those that it requires."""
    jobs: dict[tuple[str, int], Job] = {}
    for seed in study.seeds:
        for config in study.experiments:
            for job in _with_required(config, seed, runs_dir / study.name / f"seed{seed}"):
                jobs.setdefault(job.key, job)
    return list(jobs.values())


def seconds_of(job: Job, runs_dir: Path) -> float | None:
    """What such a job took before, with any seed, here or outside of the study; None if nobody knows."""
    candidates = [
        *runs_dir.glob(f"*/seed*/{job.name}/latest/results.json"),
        runs_dir / job.name / "latest/results.json",
    ]
    for path in candidates:
        try:
            return float(sum(json.loads(path.read_text(encoding="utf-8"))["wall_seconds"].values()))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _with_required(config: Path, seed: int, runs_dir: Path) -> Iterator[Job]:
    required = requirements(config_chain(config))
    for path in required:
        yield from _with_required(path, seed, runs_dir)
    yield Job(config, seed, runs_dir, tuple(run_name(path) for path in required))


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
