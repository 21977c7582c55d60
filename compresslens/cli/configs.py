"""Finding configuration files and what they extend, without importing anything heavy."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from compresslens.errors import UserError

CONFIG_DIRECTORY = Path(__file__).resolve().parents[2] / "configs"
MAX_EXTENDS_DEPTH = 2


def find_config(name: str, relative_to: Path | None = None) -> Path:
    """Path of a configuration file.

    Args:
        name: a bare name ("distill_resnet18.yaml", with or without the ending) or a name below `configs/`
            ("cifar10/distill_resnet18.yaml"); anything else with a slash is a path.
        relative_to: folder of the file that named this one; looked at first, instead of the working folder.

    Raises:
        UserError: no such file; the nearest name is suggested.
    """
    name = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    first = [relative_to] if relative_to else [Path()] if "/" in name else []
    for folder in [*first, CONFIG_DIRECTORY]:
        path = (folder / Path(name).expanduser()).resolve()
        if path.is_file():
            return path
    if Path(name).is_file():
        raise UserError(f"no config {name!r} in {display(CONFIG_DIRECTORY)}; did you mean './{name}'?")
    experiments = shipped_configs()
    near = difflib.get_close_matches(name, experiments, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else "`python train.py --help` lists the shipped ones"
    raise UserError(f"no config {name!r}; {hint}")


def shipped_configs() -> list[str]:
    """Names of the experiments below `configs/`, without what they have in common."""
    paths = (path.relative_to(CONFIG_DIRECTORY) for path in CONFIG_DIRECTORY.rglob("*.yaml"))
    return sorted(path.as_posix() for path in paths if path.parts[0] not in ("base", "studies"))


def run_name(path: Path) -> str:
    """What the runs of a config are called: its stem, after the folders it lies in below `configs/`, joined by "_".

    So `cifar10/teacher_resnet34.yaml` and `teacher_resnet34.yaml` do not share a run folder.
    """
    if path.is_relative_to(CONFIG_DIRECTORY):
        return "_".join(path.relative_to(CONFIG_DIRECTORY).with_suffix("").parts)
    return path.stem


def read_config(path: Path) -> dict[str, Any]:
    """Content of one YAML file.

    Raises:
        UserError: the file is not valid YAML, or not a mapping.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{display(path)}: not valid YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(f"{display(path)}: expected keys and values, found {type(document).__name__}")
    return document


def config_chain(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """The file and all that it extends, bases first, each with its content.

    Raises:
        UserError: files extend each other in a circle or deeper than two levels.
    """
    if path in seen:
        raise UserError(f"configs extend each other: {' -> '.join(p.name for p in (*seen, path))}")
    if len(seen) > MAX_EXTENDS_DEPTH:
        raise UserError(f"{display(seen[0])}: `extends` goes deeper than {MAX_EXTENDS_DEPTH} levels")
    document = read_config(path)
    bases = as_names(document.get("extends"), "extends", path)
    chain = [link for base in bases for link in config_chain(find_config(base, path.parent), (*seen, path))]
    return [*chain, (path, document)]


def requirements(chain: list[tuple[Path, dict[str, Any]]]) -> list[Path]:
    """Configs that must have been trained before; the last file of the chain that has the key decides."""
    for path, document in reversed(chain):
        if "requires" in document:
            names = as_names(document["requires"], "requires", path)
            return [find_config(name, path.parent) for name in names]
    return []


def refuse_circles(path: Path, seen: tuple[Path, ...] = ()) -> None:
    """Follows what a config requires, and what that requires.

    Raises:
        UserError: configs require each other in a circle.
    """
    if path in seen:
        raise UserError(f"configs require each other: {' -> '.join(p.name for p in (*seen, path))}")
    for required in requirements(config_chain(path)):
        refuse_circles(required, (*seen, path))


def as_names(value: Any, key: str, path: Path) -> list[str]:
    """A name or a list of names, as a list."""
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{display(path)}: `{key}` must be the name of a config or a list of names, got {value!r}")
    return names


def place_paths(value: Any, runs_dir: str) -> Any:
    """Puts texts such as `runs/teacher/latest` under the folder that holds the runs, and expands a leading `~/`."""
    if isinstance(value, dict):
        return {key: place_paths(item, runs_dir) for key, item in value.items()}
    if isinstance(value, list):
        return [place_paths(item, runs_dir) for item in value]
    if isinstance(value, str) and value.startswith("runs/"):
        return f"{runs_dir.rstrip('/')}/{value.removeprefix('runs/')}"
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    return value


def display(path: Path) -> str:
    """The path as a user would write it: relative to the working or the shipped folder where it lies in there."""
    for base in (Path.cwd(), CONFIG_DIRECTORY.parent):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)
