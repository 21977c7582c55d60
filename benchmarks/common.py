"""What the benchmarks share."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def versions(distributions: Iterable[str]) -> str:
    """Of the packages that take part, as far as they are installed."""
    found = []
    for name in distributions:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def say(what: str) -> None:
    """Where a benchmark stands, for those who wait."""
    print(f"... {what}", file=sys.stderr, flush=True)
