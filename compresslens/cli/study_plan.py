"""What a study consists of: experiments × seeds, in an order in which each finds what it requires."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compresslens import runs
from compresslens.cli.configs import (
    CONFIG_DIRECTORY,
    config_chain,
    display,
    find_config,
    read_config,
    refuse_circles,
    requirements,
    run_name,
)
from compresslens.cli.thresholds import DEFAULTS, thresholds
from compresslens.errors import UserError

KEYS = ("experiments", "seeds", "options", *DEFAULTS)
OWN_OPTIONS = {  # of train.py, which the study gives itself
    *("--config", "-c", "--name", "--runs_dir", "--resume", "--requires", "--ckpt_path"),
    *("--seed_everything", "--model.seed", "--model.init_args.seed", "--data.seed", "--data.init_args.seed"),
}


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

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"

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
        limits: see `compresslens.cli.thresholds`; empty for the usual ones.
    """

    name: str
    experiments: Sequence[Path]
    seeds: Sequence[int]
    options: Sequence[str]
    limits: Mapping[str, float] = field(default_factory=dict)


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
    if not _is_list(seeds, int) or not seeds:
        raise UserError(f"{display(path)}: seeds must be a list of numbers")
    if not _is_list(options, str):
        raise UserError(f"{display(path)}: options must be a list of texts such as --trainer.max_epochs=1")
    configs = [find_config(name, path.parent) for name in experiments]
    if twice := [name for name, config in zip(experiments, configs, strict=True) if configs.count(config) > 1]:
        raise UserError(f"{display(path)}: {twice[0]!r} stands there twice; more runs of it are more seeds")
    limits = {name: content[name] for name in DEFAULTS if name in content}
    thresholds(limits)
    return Study(path.stem, configs, seeds, options, limits)


def plan(study: Study, runs_dir: Path) -> list[Job]:
    """All jobs of a study; each stands behind those that it requires.

    Raises:
        UserError: seeds or options that cannot be, configs that require each other, or two of the same name.
    """
    if wrong := [seed for seed in study.seeds if not 0 <= seed < 2**32]:
        raise UserError(f"seed {wrong[0]} is not in [0, 2**32)")
    if own := [option for option in study.options if option.partition("=")[0] in OWN_OPTIONS]:
        raise UserError(f"{own[0]} is what the study itself gives to train.py; leave it out")
    for config in study.experiments:
        refuse_circles(config)
    jobs: dict[tuple[str, int], Job] = {}
    for seed in dict.fromkeys(study.seeds):
        for config in study.experiments:
            for job in _with_required(config, seed, runs_dir / study.name / f"seed{seed}"):
                same = jobs.setdefault(job.key, job)
                if same.config != job.config:
                    raise UserError(f"{display(same.config)} and {display(job.config)} have the same name; rename one")
    return list(jobs.values())


def _with_required(config: Path, seed: int, runs_dir: Path) -> Iterator[Job]:
    required = requirements(config_chain(config))
    for path in required:
        yield from _with_required(path, seed, runs_dir)
    yield Job(config, seed, runs_dir, tuple(run_name(path) for path in required))


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
