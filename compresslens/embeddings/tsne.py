"""t-SNE maps of features that can be compared: exact neighbours, a fixed seed, aligned with a reference's map."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from openTSNE import TSNEEmbedding
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.nearest_neighbors import KNNIndex
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from compresslens.embeddings.distances import Floats, Indices, as_points, nearest_neighbours
from compresslens.embeddings.divergence import kl_divergence
from compresslens.embeddings.schedule import ALIGNED_FIT, FIT, Optimization, Progress, radius
from compresslens.errors import UserError

_SMALL = 1e-4  # standard deviation of principal components to start from (Kobak & Berens 2019)
_SHRUNK = 0.1  # and of a reference's map
_JITTER = 1e-2  # share of that, so that equal samples do not stay glued together


class _ExactNeighbours(KNNIndex):
    """openTSNE's interface to our neighbours: exact, and in no need of random numbers."""

    VALID_METRICS = ("euclidean",)

    def build(self) -> tuple[Indices, Floats]:
        return nearest_neighbours(self.data, self.k)

    def query(self, query: Floats, k: int) -> tuple[Indices, Floats]:
        return nearest_neighbours(self.data, k, query)


@dataclass(frozen=True)
class _Space:
    """Where neighbours are sought: the principal components in units of the first one's standard deviation."""

    pca: PCA | None
    unit: float
    width: int

    def project(self, features: Floats) -> Floats:
        assert self.pca is not None
        return np.asarray(self.pca.transform(features) / self.unit)


@dataclass(frozen=True)
class Embedding:
    """A t-SNE map.

    Attributes:
        positions: N×2, float64, with mean zero.
        finished: False if the time budget ended before the last iteration; an unfinished map is not to be compared.
        iterations: as many were done.
        planned: as many were to be done.
        variance: share of the features' variance that the principal components keep, in [0, 1].
    """

    positions: Floats
    finished: bool
    iterations: int
    planned: int
    variance: float
    _space: _Space = field(repr=False)
    _affinities: PerplexityBasedNN | None = field(repr=False)

    @cached_property
    def kl_divergence(self) -> float:
        """What t-SNE minimizes, in nats (exact, computed when first asked for); zero if all features are the same."""
        return 0.0 if self._affinities is None else kl_divergence(self._affinities.P, self.positions)

    def transform(self, features: ArrayLike) -> Floats:
        """Places new samples in the map, each by itself; the map stays as it is.

        Args:
            features: M×D of the network that the map is of.

        Returns:
            M×2, float64. If the map's features were all the same: zeros.

        Raises:
            UserError: another D than the map's, or what :func:`tsne` refuses of features.
        """
        new = as_points(features)
        if new.shape[1] != self._space.width:
            raise UserError(f"the map is of {self._space.width} features per sample; these are {new.shape[1]}")
        if self._affinities is None:
            return np.zeros((len(new), 2))
        # A copy: openTSNE moves the map that it places samples in.
        here = TSNEEmbedding(self.positions, self._affinities, n_jobs=1, negative_gradient_method="bh")
        with threadpool_limits(1, "blas"):
            placed = here.transform(self._space.project(new), perplexity=min(5, self._affinities.perplexity))
        return np.asarray(placed) + (self.positions[0] - np.asarray(here)[0])


def tsne(
    features: ArrayLike,
    *,
    initial: ArrayLike | None = None,
    perplexity: float = 30,
    pca: int = 50,
    seed: int = 0,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> Embedding:
    """A t-SNE map (van der Maaten & Hinton 2008) of features, in two dimensions.

    The features are reduced to their first principal components; neighbours are exact; the map starts from the first
    two components, or from another map. It is computed in one thread. The same arguments give the same map, in any
    process of the same machine; no global random state is touched.

    Two maps of the same samples can be compared if the second starts from the first (`initial`): as far as its features
    allow, samples settle where they were. It starts from the first shrunk to a point, almost, and is gathered anew, so
    that what the features do not say is forgotten; then it is spread to the first one's size, unless its features ask
    for another, and turned or mirrored to lie as the first. Fewer iterations do: of thousands of samples the divergence
    is some percent above that of a map made from nothing.

    Args:
        features: N×D, finite; N at least 3 × perplexity + 1. Equal samples are fine. If all samples are the same, all
            positions are zero, after no iteration.
        initial: N×2, the reference's map of the same samples in the same order, not all at one place.
        perplexity: effective number of neighbours, at least 1; never lowered silently.
        pca: number of principal components, at least 1; fewer if D or N is smaller.
        seed: non-negative.
        seconds: time budget (wall time, from the call on, looked at every 20 iterations). A map that it cuts short
            depends on the speed of the machine, and says so.
        progress: called with the iterations done and those planned, every 20.

    Raises:
        UserError: too few samples for the perplexity, NaN or infinity, or an argument out of range.
    """
    optimization = Optimization(FIT if initial is None else ALIGNED_FIT, seconds, progress)
    points = as_points(features)
    _check_settings(len(points), perplexity, pca, seconds)
    reference = None if initial is None else _checked_map(initial, len(points))
    if (points == points[0]).all():
        return _collapsed(points, optimization.planned)
    with threadpool_limits(1, "blas"):  # the last digits of matrix products depend on the number of threads
        reduced = PCA(min(pca, *points.shape), random_state=seed)
        components = reduced.fit_transform(points)
        space = _Space(reduced, float(components[:, 0].std()), points.shape[1])
        affinities = exact_affinities(components / space.unit, perplexity)
        start = _start(components[:, :2], _SMALL, seed) if reference is None else _start(reference, _SHRUNK, seed)
        positions = optimization.run(start, affinities, None if reference is None else radius(reference))
    positions -= positions.mean(0)
    return Embedding(
        positions if reference is None else _turned(positions, reference),
        optimization.done == optimization.planned,
        optimization.done,
        optimization.planned,
        float(reduced.explained_variance_ratio_.sum()),
        space,
        affinities,
    )


def exact_affinities(points: Floats, perplexity: float) -> PerplexityBasedNN:
    """openTSNE's affinities of N×D points, from exact neighbours; `.P` is the sparse N×N matrix."""
    index = _ExactNeighbours(points, int(3 * perplexity))
    return PerplexityBasedNN(knn_index=index, perplexity=perplexity, n_jobs=1)


def _start(positions: Floats, spread: float, seed: int) -> Floats:
    """Shrunk to a standard deviation, in two columns, with a little noise."""
    start = np.zeros((len(positions), 2))
    start[:, : positions.shape[1]] = positions - positions.mean(0)
    start *= spread / start.std(0).max()
    return start + np.random.default_rng(seed).normal(0, spread * _JITTER, start.shape)


def _turned(positions: Floats, reference: Floats) -> Floats:
    """Rotated or mirrored for the least squared distance from the reference: no distance within the map changes."""
    left, _, right = np.linalg.svd(positions.T @ (reference - reference.mean(0)))
    return np.asarray(positions @ (left @ right))


def _collapsed(points: Floats, planned: int) -> Embedding:
    """All samples are the same: all similarities are equal, and so they are in a map of one place."""
    space = _Space(None, 1.0, points.shape[1])
    return Embedding(np.zeros((len(points), 2)), True, 0, planned, 1.0, space, None)


def _checked_map(initial: ArrayLike, samples: int) -> Floats:
    positions = as_points(initial, "initial positions")
    if positions.shape != (samples, 2):
        raise UserError(f"initial has the shape {positions.shape}; for these features it must be ({samples}, 2)")
    if np.ptp(positions, axis=0).max() == 0:
        raise UserError("all initial positions are the same: there is nothing to align with, leave initial out")
    return positions


def _check_settings(samples: int, perplexity: float, pca: int, seconds: float | None) -> None:
    if not 1 <= perplexity < np.inf:
        raise UserError(f"perplexity is {perplexity}; it must be at least 1")
    needed = int(3 * perplexity) + 1
    if samples < needed:
        raise UserError(
            f"a perplexity of {perplexity:g} needs {needed} samples, there are {samples}: take more, or lower the "
            f"perplexity to {(samples - 1) // 3} or less"
            if samples > 3
            else f"a t-SNE map needs at least 4 samples, there are {samples}"
        )
    if pca < 1:
        raise UserError(f"pca is {pca}; it must be at least 1")
    if seconds is not None and not seconds >= 0:
        raise UserError(f"seconds is {seconds}; it must not be negative")
