"""What a W&B run says about itself: group, job type and tags, and which runs it started from."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compresslens import runs

METHODS = "lightning_modules"  # the package with a file for each method
TAG_LENGTH = 64  # the longest that W&B takes


@dataclass(frozen=True)
class Description:
    """How a run is found among others.

    Attributes:
        group: the experiment, whatever the seed: the name of the run, after that of its study if it has one.
        job_type: the method, e.g. "pruning"; None if the module cannot be told.
        tags: method, architecture, data set, seed and study.
    """

    group: str
    job_type: str | None
    tags: list[str]


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved config of a run; empty if there is none."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def describe(folder: Path, config: Mapping[str, Any]) -> Description:
    """Describes a run by its folder (`<runs_dir>/[<study>/seed<n>/]<name>/<time stamp>`) and its config."""
    folder = folder.resolve()
    name, above = folder.parent.name, folder.parent.parent
    study = above.parent.name if re.fullmatch(r"seed\d+", above.name) else None
    model, data, seed = config.get("model"), config.get("data"), config.get("seed_everything")
    method = _method(_class_path(model))
    found = (
        method,
        _architecture(model),
        _class_path(data).rpartition(".")[2],
        f"seed{seed}" if isinstance(seed, int) and not isinstance(seed, bool) else None,
        study,
    )
    tags = list(dict.fromkeys(tag[:TAG_LENGTH] for tag in found if tag))
    return Description(f"{study}-{name}" if study else name, method, tags)


def origins(config: Any) -> list[Path]:
    """The checkpoints of other runs that a config names as `weights`: what a model starts from, and its teacher."""
    return list(dict.fromkeys(file for text in _weights(config) for file in _checkpoint_of_run(text)))


def without_home(value: Any) -> Any:
    """The value with the user's home folder written as `~` in all texts."""
    if isinstance(value, Mapping):
        return {key: without_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_home(item) for item in value]
    if isinstance(value, (str, Path)):
        return runs.without_home(str(value))
    return value


def _weights(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "weights" and isinstance(item, str):
                yield item
            else:
                yield from _weights(item)
    elif isinstance(value, list):
        for item in value:
            yield from _weights(item)


def _checkpoint_of_run(text: str) -> Iterator[Path]:
    path = Path(text).expanduser().resolve()  # `latest` may point elsewhere when this run ends
    file = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    if file.is_file() and file.parent.name == "checkpoints" and (file.parent.parent / "config.yaml").is_file():
        yield file


def _class_path(part: Any) -> str:
    path = part.get("class_path") if isinstance(part, Mapping) else None
    return path if isinstance(path, str) else ""


def _architecture(model: Any) -> str | None:
    arguments = model.get("init_args") if isinstance(model, Mapping) else None
    network = arguments.get("network") if isinstance(arguments, Mapping) else None
    options = network.get("init_args") if isinstance(network, Mapping) else None
    if isinstance(options, Mapping) and isinstance(options.get("architecture"), str):
        return str(options["architecture"])
    return _class_path(network).rpartition(".")[2] or None


def _method(class_path: str) -> str | None:
    """The file in which the class, or the nearest that it derives from, stands; plain training has no method."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    for base in getattr(found, "__mro__", ()):
        package, _, file = base.__module__.rpartition(".")
        if package == METHODS:
            return "training" if file == "classifier" else str(file)
    return None
