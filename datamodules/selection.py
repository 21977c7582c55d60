"""Seeded choices of samples from labels alone, the same on every machine and rank."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def stratified_split(labels: npt.ArrayLike, held_out: int, seed: int) -> tuple[Indices, Indices]:
    """Splits indices in two such that both parts have the classes in (nearly) the same proportions.

    Args:
        labels: class of every sample, N.
        held_out: size of the second part, smaller than N. Every class keeps at least one sample in the first part, so
            the second may turn out smaller if there are many classes of one sample.
        seed: non-negative.

    Returns:
        Sorted indices of the first part and of the held-out part.
    """
    classes = np.asarray(labels)
    groups = _shuffled_classes(classes, seed)
    shares = np.array([len(group) * held_out / len(classes) for group in groups])
    counts = np.floor(shares).astype(int)
    room = np.array([len(group) - 1 for group in groups])
    # Largest remainders first; a stable sort makes ties independent of the platform.
    by_remainder = np.argsort(-(shares - counts), kind="stable")
    while counts.sum() < held_out and (counts < room).any():
        for group in by_remainder:
            if counts[group] < room[group] and counts.sum() < held_out:
                counts[group] += 1
    counts = np.minimum(counts, room)
    chosen = np.sort(np.concatenate([group[:count] for group, count in zip(groups, counts, strict=True)]))
    return np.setdiff1d(np.arange(len(classes)), chosen), chosen


def balanced_indices(labels: npt.ArrayLike, count: int, seed: int) -> Indices:
    """A class-balanced choice: one sample of each class in turn until there are ``count`` (or no more samples).

    Class counts differ by at most one, except where a class has too few samples.

    Returns:
        Sorted indices, ``min(count, N)``.
    """
    classes = np.asarray(labels)
    groups = _shuffled_classes(classes, seed)
    turn = np.empty(len(classes), dtype=np.int64)
    for group in groups:
        turn[group] = np.arange(len(group))
    # Within a round the classes come in a random but fixed order, so that no class is favoured by its number.
    order_of_classes = np.random.default_rng((seed, 1)).permutation(int(classes.max(initial=0)) + 1)
    order = np.lexsort((order_of_classes[classes], turn))
    return np.sort(order[:count]).astype(np.int64)


def _shuffled_classes(classes: npt.NDArray[np.int64], seed: int) -> list[Indices]:
    generator = np.random.default_rng((seed, 0))
    by_class = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[by_class])) + 1
    return [generator.permutation(group) for group in np.split(by_class, starts)]
