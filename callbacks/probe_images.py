"""The fixed images of a probe: which of them a rank looks at, in which order, and when the time is up."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.selection import Indices
from datamodules.transformed import collate


class Chunk(NamedTuple):
    """Some of the images, on the module's device.

    Attributes:
        indices: N int64, of the samples in their split.
        positions: N int64, of the samples among those of all ranks, in an order that takes the classes in turn.
        images: N×3×H×W in [0, 1].
        labels: N int64.
        masks: N×H×W bool, or None where the data has none.
    """

    indices: Indices
    positions: Indices
    images: Tensor
    labels: Tensor
    masks: Tensor | None


class Share:
    """This rank's part of the fixed images.

    Args:
        dataset: the split.
        indices: of the fixed images in it, in an order that takes the classes in turn.
        labels: of these images.
        rank: this process.
        ranks: number of processes; see :func:`dealt`.
        device: where the images go.
        dtype: of the images.
        ends: when `time.monotonic` says that the time is used up.
        title: of the progress bar; None: there is none.
    """

    def __init__(
        self,
        dataset: Any,
        indices: Indices,
        labels: npt.NDArray[np.int64],
        rank: int,
        ranks: int,
        device: torch.device,
        dtype: torch.dtype,
        ends: float,
        title: str | None,
    ) -> None:
        self.dataset = dataset
        self.total = len(indices)
        self.rank, self.ranks = rank, ranks
        self.positions = np.flatnonzero(dealt(labels, ranks) == rank)
        self.indices = indices[self.positions]
        self.device = device
        self.dtype = dtype
        self.ends = ends
        self.title = title

    def __len__(self) -> int:
        return len(self.indices)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The images in chunks; rank zero shows how far it is.

        The time budget is looked at between the chunks: what is begun is finished, and the first is always begun. Since
        the classes take turns on each rank, what was covered when the time was used up is balanced, too.
        """
        with progress_bar(self.title, len(self), "image") as bar:
            for start in range(0, len(self), size):
                if start and time.monotonic() >= self.ends:
                    return
                indices = self.indices[start : start + size]
                images, labels, *masks = collate([self.dataset[int(index)] for index in indices])
                yield Chunk(
                    indices,
                    self.positions[start : start + size],
                    images.to(self.device, self.dtype),
                    labels.to(self.device),
                    masks[0].to(self.device) if masks else None,
                )
                bar.update(len(indices))


def progress_bar(title: str | None, total: int, unit: str) -> Any:
    """A progress bar that leaves nothing behind; none without a title."""
    from tqdm import tqdm

    # rich, whose progress bars may be on the screen, holds back what has no end of line
    screen = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    return tqdm(total=total, desc=title, unit=unit, leave=False, disable=title is None, file=screen)


def in_turn(labels: npt.NDArray[np.int64]) -> Indices:
    """The order (N) that takes one sample of each class, then a second one of each, and so on."""
    return np.lexsort((labels, _turns(labels)))


def dealt(labels: npt.NDArray[np.int64], ranks: int) -> Indices:
    """Which rank looks at each of the images (N), which are in an order that takes the classes in turn.

    Ranks take images in turn, and begin each turn of the classes one later than the turn before: otherwise, with ten
    classes and two ranks, each rank would see every other class only.
    """
    turns = _turns(labels)
    place = np.arange(len(labels)) - np.searchsorted(turns, turns)  # within the turn
    return (place + turns) % ranks


def _turns(labels: npt.NDArray[np.int64]) -> Indices:
    """How many samples of its class come before each sample (N)."""
    turns = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        turns[labels == label] = np.arange((labels == label).sum())
    return turns
