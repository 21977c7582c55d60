"""A limit on the bytes of pictures and pages that a W&B run logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class MediaBudget:
    """Leaves out media for which there is no room, and says so once.

    Args:
        limit: bytes in a run, all its parts together.
        warn: is told.
    """

    def __init__(self, limit: int, warn: Callable[[str], None]) -> None:
        self.limit = limit
        self.used: int | None = None
        self._warn = warn
        self._said = False

    def admit(self, metrics: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The metrics without the media for which there is no room; the others are counted.

        Args:
            metrics: numbers and media by name.
            folder: of the run; what earlier parts of a continued run have left in its `wandb/` counts, too.
        """
        used = _size_of_media(folder) if self.used is None else self.used
        kept = {}
        for key, value in metrics.items():
            size = _size(value)
            if size and used + size > self.limit:
                self._refuse(key)
                continue
            used += size
            kept[key] = value
        self.used = used
        return kept

    def _refuse(self, key: str) -> None:
        if not self._said:
            self._said = True
            megabytes = self.limit / 1e6
            self._warn(f"{key!r} and further media over media_budget ({megabytes:g} MB a run) are not logged to W&B")


def _size_of_media(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("wandb/*/files/media/**/*") if path.is_file())


def _size(value: Any) -> int:
    """Bytes of the files of wandb's media objects (a private attribute; 0 if it has gone); 0 for all else."""
    if isinstance(value, (list, tuple)):
        return sum(_size(item) for item in value)
    size = getattr(value, "_size", None)
    return size if isinstance(size, int) and type(value).__module__.startswith("wandb.") else 0
