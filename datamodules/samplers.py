"""Which image comes when, on which rank: a pure function of (seed, epoch, rank, number of ranks).

Both samplers are ``DistributedSampler``s, so that Lightning, which shards any other sampler a second time, leaves them
alone whatever ``Trainer(use_distributed_sampler=...)`` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from compresslens.errors import UserError


class TrainingSampler(DistributedSampler[Any]):
    """Shuffled ``(epoch, index)`` keys; every rank gets the same number of full batches and the tail is dropped.

    Position ``p`` of the epoch's permutation goes to rank ``p % world_size``: one optimizer step therefore sees the
    same images with 1 rank × 2B as with 2 ranks × B. The epoch travels with the index to the worker process, where it
    seeds the augmentation.

    Args:
        size: number of images.
        batch_size: images per batch and rank.
        seed: non-negative; with the epoch it fixes the permutation.
        rank: this process.
        world_size: number of processes.

    Raises:
        UserError: if there is not one full batch for every rank.
    """

    def __init__(self, size: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(_Length(size), num_replicas=world_size, rank=rank, seed=seed, drop_last=True)
        self.size = size
        self.batch_size = batch_size
        self.batches = size // (batch_size * world_size)
        self._start = (0, 0)
        if self.batches == 0:
            raise UserError(
                f"The training split has {size} images, fewer than one batch of {batch_size} for each of {world_size} "
                "rank(s); lower data.batch_size."
            )

    def start_at(self, epoch: int, batch: int) -> None:
        """Makes ``epoch`` the current one and lets it begin with batch number ``batch``; other epochs are complete."""
        self.set_epoch(epoch)
        self._start = (epoch, batch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # The epoch is read when the first key is drawn: without workers Lightning sets it after creating the iterator.
        epoch = self.epoch
        skipped = self._start[1] * self.batch_size if self._start[0] == epoch else 0
        yield from ((epoch, int(index)) for index in self.order(epoch)[skipped:])

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Indices that this rank sees in a whole epoch, in order."""
        permutation = np.random.default_rng((self.seed, epoch)).permutation(self.size)
        return permutation[self.rank :: self.num_replicas][: len(self)]

    def __len__(self) -> int:
        """Samples of a whole epoch on this rank, also when it was entered in the middle (Lightning counts on that)."""
        return self.batches * self.batch_size


class EvaluationSampler(DistributedSampler[Any]):
    """Indices in order: rank r takes r, r + W, ...; the last round is filled up from the start of the data set.

    :func:`evaluation_indices` tells the filling apart.
    """

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(_Length(size), num_replicas=world_size, rank=rank, shuffle=False)


class TrainingLoader(DataLoader[Any]):
    """A ``DataLoader`` that tells Lightning that it can be resumed (its place is set by ``ImageDataModule``)."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what the loader has prefetched says nothing about what was trained on."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class _Length(Dataset[Any]):
    """What ``DistributedSampler`` wants to know of a data set."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)

    def __len__(self) -> int:
        return self.size


def evaluation_indices(
    data: DataLoader[Any] | int, batch_idx: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> tuple[Tensor, Tensor]:
    """Which samples a batch of a validation or test loader holds.

    Args:
        data: the loader, or the number of samples in the whole split.
        batch_idx: the batch's number on this rank.
        batch_size: evaluation batch size per rank.
        rank: this process.
        world_size: number of processes.

    Returns:
        ``indices`` (int64, B): indices into the split; ``is_real`` (bool, B): False where the sample only fills up the
        last round of ranks and has been evaluated elsewhere already.
    """
    size = len(data.dataset) if isinstance(data, DataLoader) and isinstance(data.dataset, Sized) else data
    assert isinstance(size, int)
    per_rank = -(-size // world_size)
    rounds = torch.arange(batch_idx * batch_size, min((batch_idx + 1) * batch_size, per_rank))
    positions = rounds * world_size + rank
    return positions % size, positions < size
