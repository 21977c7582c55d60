"""How much of the features' neighbourhoods and classes a map keeps: a value per sample, so intervals are possible.

All distances are Euclidean. Memory is linear in the number of samples, time quadratic.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compresslens.embeddings.distances import Floats, as_points, distance_blocks, nearest_neighbours
from compresslens.errors import UserError
from compresslens.statistics import Interval, bootstrap_interval


@dataclass(frozen=True)
class EmbeddingQuality:
    """One value per sample of a map and of the features that it is made from, N each.

    Attributes:
        knn_features: whether the nearest neighbours in feature space tell the sample's class.
        knn_map: the same in the map.
        silhouette: of the sample among the classes in feature space, in [-1, 1]; NaN if there is one class only.
        trustworthiness: in [0, 1].
        continuity: in [0, 1].
    """

    knn_features: NDArray[np.bool_]
    knn_map: NDArray[np.bool_]
    silhouette: Floats
    trustworthiness: Floats
    continuity: Floats

    def summary(self) -> dict[str, tuple[float, Interval | None]]:
        """Name to mean and 95 % bootstrap interval; NaN and None for what is not defined."""
        found: dict[str, tuple[float, Interval | None]] = {}
        for entry in fields(self):
            values = np.asarray(getattr(self, entry.name), dtype=np.float64)
            interval = bootstrap_interval(values) if np.isfinite(values).all() else None
            found[entry.name] = float(values.mean()), interval
        return found


def embedding_quality(features: ArrayLike, positions: ArrayLike, labels: ArrayLike, k: int = 10) -> EmbeddingQuality:
    """All measures of this module.

    Args:
        features: N×D.
        positions: N×2, a map of the same samples.
        labels: N classes.
        k: number of neighbours in each measure, at least 1, less than N / 2.

    Raises:
        UserError: as the single measures.
    """
    return EmbeddingQuality(
        knn_correct(features, labels, k),
        knn_correct(positions, labels, k),
        silhouettes(features, labels),
        trustworthiness(features, positions, k),
        continuity(features, positions, k),
    )


def knn_correct(points: ArrayLike, labels: ArrayLike, k: int = 10) -> NDArray[np.bool_]:
    """Whether the majority of a sample's k nearest neighbours, itself left out, has its class.

    Of classes with equally many neighbours the one with the nearest of them wins; of equally near neighbours those with
    the lower index come first.

    Args:
        points: N×D, features or a map.
        labels: N classes.
        k: at least 1, less than N.

    Returns:
        N booleans, the mean of which is the leave-one-out accuracy.

    Raises:
        UserError: k or the number of labels does not fit N, or NaN or infinity among the points.
    """
    where = as_points(points)
    codes = _codes(labels, len(where))
    if not 1 <= k < len(where):
        raise UserError(f"k is {k}; with {len(where)} samples it must be between 1 and {len(where) - 1}")
    votes = codes[nearest_neighbours(where, k)[0]]
    # Votes for the class of each neighbour; argmax takes the first, i.e. nearest, of the most frequent.
    counts = np.stack([(votes == votes[:, [rank]]).sum(1) for rank in range(k)], axis=1)
    return votes[np.arange(len(votes)), counts.argmax(1)] == codes


def silhouettes(points: ArrayLike, labels: ArrayLike) -> Floats:
    """Silhouette (Rousseeuw 1987) of every sample with its class as its cluster.

    Args:
        points: N×D, features or a map.
        labels: N classes.

    Returns:
        N values in [-1, 1]: the distance to the nearest other class less that to the own, over the larger of the two.
        Zero for a sample that is alone in its class, and where both distances are zero. NaN if there is one class only.

    Raises:
        UserError: another number of labels than N, or NaN or infinity among the points.
    """
    where = as_points(points)
    codes = _codes(labels, len(where))
    sizes = np.bincount(codes)
    if len(sizes) == 1:
        return np.full(len(where), np.nan)
    members = np.eye(len(sizes))[codes]
    values = np.empty(len(where))
    for rows, squared in distance_blocks(where):
        squared[np.isinf(squared)] = 0  # of a sample to itself
        own = codes[rows]
        each = np.arange(len(own))
        sums = np.sqrt(squared) @ members
        within = sums[each, own] / np.maximum(sizes[own] - 1, 1)
        means = sums / sizes
        means[each, own] = np.inf
        between = means.min(1)
        larger = np.maximum(within, between)
        gaps = np.divide(between - within, larger, out=np.zeros(len(own)), where=larger > 0)
        values[rows] = np.where(sizes[own] == 1, 0, gaps)
    return values


def trustworthiness(features: ArrayLike, positions: ArrayLike, k: int = 10) -> Floats:
    """Trustworthiness (Venna & Kaski 2001, eq. 1) of every sample: are its neighbours in the map neighbours in truth?

    Args:
        features: N×D.
        positions: N×2, a map of the same samples.
        k: number of neighbours, at least 1, less than N / 2.

    Returns:
        N values in [0, 1]: one less the ranks beyond k, in feature space, of the k nearest in the map, over the most
        that they can be. A neighbour's rank is one more than the number of samples that are nearer; equally near ones
        do not count against it. The mean is scikit-learn's `trustworthiness` (if no distances are equal).

    Raises:
        UserError: k or the number of positions does not fit N, or NaN or infinity in either.
    """
    truth, shown = as_points(features), as_points(positions, "positions")
    _check_pair(truth, shown, k)
    return _kept_ranks(truth, shown, k)


def continuity(features: ArrayLike, positions: ArrayLike, k: int = 10) -> Floats:
    """Continuity (Venna & Kaski 2001, eq. 2) of every sample: are its true neighbours neighbours in the map?

    As :func:`trustworthiness`, with features and map exchanged.
    """
    truth, shown = as_points(features), as_points(positions, "positions")
    _check_pair(truth, shown, k)
    return _kept_ranks(shown, truth, k)


def _kept_ranks(ranked: Floats, chosen: Floats, k: int) -> Floats:
    """One less the ranks beyond k in one space of the k nearest in the other, over their maximum."""
    samples = len(ranked)
    neighbours, _ = nearest_neighbours(chosen, k)
    values = np.empty(samples)
    for rows, distances in distance_blocks(ranked):
        theirs = np.take_along_axis(distances, neighbours[rows], 1)
        # k comparisons of all distances are a fifth of the time of sorting them
        nearer = np.stack([np.count_nonzero(distances < theirs[:, [i]], axis=1) for i in range(k)], axis=1)
        values[rows] = np.maximum(nearer + 1 - k, 0).sum(1)
    return 1 - values * 2 / (k * (2 * samples - 3 * k - 1))


def _check_pair(features: Floats, positions: Floats, k: int) -> None:
    if len(features) != len(positions):
        raise UserError(f"there are {len(features)} samples in feature space but {len(positions)} in the map")
    if not 1 <= k < len(features) / 2:
        raise UserError(f"k is {k}; with {len(features)} samples it must be at least 1 and less than half of them")


def _codes(labels: ArrayLike, samples: int) -> NDArray[np.int64]:
    """Classes as 0, 1, …"""
    classes = np.asarray(labels)
    if classes.shape != (samples,):
        raise UserError(f"labels have the shape {classes.shape}; for these samples it must be ({samples},)")
    return np.unique(classes, return_inverse=True)[1]
