"""Samplers: every image once, the same number of batches on every rank, and what comes after an interruption."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.distributed import DistributedSampler

from compresslens.errors import UserError
from datamodules.samplers import EvaluationSampler, TrainingSampler, evaluation_indices
from tests.datamodules.tiny import Squares

sizes = st.integers(1, 60)
batch_sizes = st.integers(1, 7)
worlds = st.integers(1, 4)


def samplers(size: int, batch_size: int, world: int, seed: int = 0, epoch: int = 0) -> list[TrainingSampler]:
    made = [TrainingSampler(size, batch_size, seed, rank, world) for rank in range(world)]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


@given(size=sizes, batch_size=batch_sizes, world=worlds, epoch=st.integers(0, 3))
def test_training_shows_every_image_at_most_once_in_full_batches(
    size: int, batch_size: int, world: int, epoch: int
) -> None:
    if size < batch_size * world:
        with pytest.raises(UserError, match=f"has {size} images, fewer than one batch of {batch_size}"):
            samplers(size, batch_size, world)
        return
    keys = [list(sampler) for sampler in samplers(size, batch_size, world, epoch=epoch)]
    batches = size // (batch_size * world)
    assert [len(keys_of_rank) for keys_of_rank in keys] == [batches * batch_size] * world
    shown = [index for keys_of_rank in keys for key_epoch, index in keys_of_rank if key_epoch == epoch]
    assert len(shown) == len(set(shown)) == batches * batch_size * world
    assert set(shown) <= set(range(size))


@given(batch_size=batch_sizes, world=worlds)
def test_a_step_sees_the_same_images_with_any_number_of_ranks(batch_size: int, world: int) -> None:
    size = 61
    if size < batch_size * world:
        return
    parts = [list(BatchSampler(s, batch_size, drop_last=True)) for s in samplers(size, batch_size, world)]
    (alone,) = samplers(size, batch_size * world, 1)
    for number, batch in enumerate(BatchSampler(alone, batch_size * world, drop_last=True)):
        assert sorted(batch) == sorted(key for part in parts for key in part[number])


@given(batch_size=batch_sizes, world=st.integers(1, 3), batch=st.integers(0, 12), epoch=st.integers(0, 2))
def test_starting_within_an_epoch_gives_its_rest(batch_size: int, world: int, batch: int, epoch: int) -> None:
    for whole, resumed in zip(samplers(60, batch_size, world), samplers(60, batch_size, world), strict=True):
        resumed.start_at(epoch, batch)
        whole.set_epoch(epoch)
        assert list(resumed) == list(whole)[batch * batch_size :]
        assert len(resumed) == len(whole), "Lightning counts the batches of the whole epoch"
        for sampler in (whole, resumed):
            sampler.set_epoch(epoch + 1)
        assert list(resumed) == list(whole), "only the first epoch is shortened"


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(samplers(60, 5, 1, seed)[0].order(epoch)) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(orders) == 4
    assert list(range(60)) not in [list(order) for order in orders]


def test_the_epoch_may_be_set_after_the_iterator_was_made() -> None:
    (sampler,) = samplers(60, 5, 1)
    early = iter(sampler)
    sampler.set_epoch(2)
    assert next(early)[0] == 2


@given(size=sizes, batch_size=batch_sizes, world=worlds)
def test_evaluation_covers_every_image_once_beside_the_filling(size: int, batch_size: int, world: int) -> None:
    real, lengths = [], []
    for rank in range(world):
        loader: Any = DataLoader(Squares(size), batch_size, sampler=EvaluationSampler(size, rank, world))
        lengths.append(len(loader))
        for batch_idx, batch in enumerate(loader):
            for data in (loader, size):
                indices, is_real = evaluation_indices(data, batch_idx, batch_size, rank, world)
                assert torch.equal(indices, batch[0][:, 0, 0, 0])
            real += indices[is_real].tolist()
    assert sorted(real) == list(range(size))
    assert len(set(lengths)) == 1


def test_lightning_leaves_the_samplers_alone() -> None:
    assert issubclass(TrainingSampler, DistributedSampler)
    assert issubclass(EvaluationSampler, DistributedSampler)
