"""Finds misspelt keys in a config file before the parser does, so that the message can name the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compresslens.cli.explain import nearest

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


def misspelt_keys(document: dict[str, Any], destinations: list[str]) -> Iterator[str]:
    """Messages for keys that no one would read.

    Args:
        document: content of one file, without our own keys.
        destinations: the parser's, e.g. "trainer.max_epochs" and "model".
    """
    top = sorted({destination.split(".")[0] for destination in destinations})
    for key, value in document.items():
        name = str(key).removesuffix("+")
        if name not in top:
            yield f"there is no key {key!r}{nearest(name, [*top, 'extends', 'requires'])}"
            continue
        if name == "trainer" and isinstance(value, dict):
            below = [d.removeprefix("trainer.") for d in destinations if d.startswith("trainer.")]
            unknown = [str(k) for k in value if str(k).removesuffix("+") not in below]
            yield from (f"trainer has no key {k!r}{nearest(k, below)}" for k in unknown)
        yield from misspelt_class_keys(value, key)


def misspelt_class_keys(value: Any, place: str) -> Iterator[str]:
    """The same within mappings that describe an object: beside `class_path` only `init_args` may stand."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from misspelt_class_keys(item, f"{place}[{number}]")
    if isinstance(value, dict):
        if "class_path" in value:
            unknown = [str(key) for key in value if key not in CLASS_KEYS]
            yield from (f"{place}: {k!r} beside class_path{nearest(k, list(CLASS_KEYS))}" for k in unknown)
        for key, item in value.items():
            yield from misspelt_class_keys(item, f"{place}.{key}")
