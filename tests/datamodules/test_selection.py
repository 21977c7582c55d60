"""Stratified splits and balanced subsets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datamodules.selection import balanced_indices, stratified_split

labels = st.lists(st.integers(0, 4), min_size=2, max_size=80)


@given(labels=labels, seed=st.integers(0, 3), data=st.data())
def test_a_split_is_a_partition_that_keeps_every_class(labels: list[int], seed: int, data: st.DataObject) -> None:
    held_out = data.draw(st.integers(1, len(labels) - 1))
    first, second = stratified_split(labels, held_out, seed)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert {labels[index] for index in first} == set(labels)
    assert len(second) == min(held_out, len(labels) - len(set(labels)))


@given(counts=st.lists(st.integers(4, 30), min_size=1, max_size=5), percent=st.integers(5, 70))
def test_a_split_has_the_classes_in_proportion(counts: list[int], percent: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    held_out = max(1, len(labels) * percent // 100)
    chosen = np.bincount(labels[stratified_split(labels, held_out, 0)[1]], minlength=len(counts))
    assert chosen.sum() == held_out
    assert (np.abs(chosen - np.array(counts) * held_out / len(labels)) < 1).all()


def test_a_split_depends_on_the_seed_only() -> None:
    labels = np.arange(100) % 5
    again, other = stratified_split(labels, 20, 0)[1], stratified_split(labels, 20, 1)[1]
    np.testing.assert_array_equal(stratified_split(labels, 20, 0)[1], again)
    assert set(again) != set(other)
    assert np.bincount(labels[again]).tolist() == [4] * 5


@given(labels=labels, count=st.integers(1, 100), seed=st.integers(0, 3))
def test_balanced_indices_are_balanced(labels: list[int], count: int, seed: int) -> None:
    chosen = balanced_indices(labels, count, seed)
    assert len(chosen) == len(set(chosen)) == min(count, len(labels))
    assert sorted(chosen) == list(chosen)
    counts = {label: int((np.array(labels)[chosen] == label).sum()) for label in set(labels)}
    for label in counts:
        assert counts[label] == labels.count(label) or counts[label] >= max(counts.values()) - 1


def test_balanced_indices_do_not_favour_the_first_classes() -> None:
    labels = np.arange(1000) % 100
    assert np.median(labels[balanced_indices(labels, 20, 0)]) > 20
