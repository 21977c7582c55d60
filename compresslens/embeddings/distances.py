"""Exact Euclidean distances and nearest neighbours of many points, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from compresslens.errors import UserError

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
_BLOCK = 2**21  # distances held at once: 16 MB
_WORTHWHILE = 2  # distances of a group, where neighbours are sought by groups
# Distances come from a matrix product, so those of equal points are not exactly zero: below this share of the norm,
# they are.
_ROUNDING = 2e-13


def as_points(values: ArrayLike, name: str = "features") -> Floats:
    """N×D numbers as float64.

    Raises:
        UserError: not two-dimensional, no samples or no columns, or NaN or infinity among them.
    """
    points = np.asarray(values, dtype=np.float64)
    if points.ndim != 2 or 0 in points.shape:
        raise UserError(f"{name} have the shape {points.shape}; expected samples × columns, at least one of each")
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points)).any(1).sum())
        raise UserError(f"{name} contain NaN or infinity in {bad} of {len(points)} samples: has the network diverged?")
    return points


def distance_blocks(points: Floats, queries: Floats | None = None) -> Iterator[tuple[slice, Floats]]:
    """Squared distances to all of N points.

    Args:
        points: N×D.
        queries: M×D; None: the points themselves, whose distance to themselves is then infinite.

    Yields:
        A slice of the queries, and the distances of these to all points, at most 16 MB (or one row), which may be
        changed and are overwritten by the next. Those that cannot be told from zero are zero.
    """
    centre = points.mean(0)  # far from the origin the product below would cancel
    centred = points - centre
    asked = centred if queries is None else queries - centre
    norms, asked_norms = (np.einsum("nd,nd->n", side, side)[:, None] for side in (centred, asked))
    # One product gives |q|² - 2qp + |p|².
    left = np.hstack([-2 * asked, asked_norms, np.ones_like(asked_norms)])
    right = np.ascontiguousarray(np.hstack([centred, np.ones_like(norms), norms]).T)
    step = min(max(1, _BLOCK // len(points)), len(asked))
    memory = np.empty((step, len(points)))  # new memory for each block would take longer than the product
    for start in range(0, len(asked), step):
        rows = slice(start, min(start + step, len(asked)))
        distances = np.matmul(left[rows], right, out=memory[: rows.stop - start])
        if queries is None:
            distances[np.arange(len(distances)), np.arange(start, rows.stop)] = np.inf
        zero = distances < _ROUNDING * asked_norms[rows]
        if zero.any():  # writing through a mask takes longer than the product
            distances[zero] = 0
        yield rows, distances


def nearest_neighbours(points: Floats, k: int, queries: Floats | None = None) -> tuple[Indices, Floats]:
    """Exact k nearest neighbours, nearest first; of equally near points, those with the lower index.

    Args:
        points: N×D.
        k: at least 1, and at most N (N - 1 without queries, since no point is its own neighbour).
        queries: M×D; None: the points themselves.

    Returns:
        Indices M×k and distances M×k.

    Raises:
        ValueError: k out of range.
    """
    most = len(points) - (queries is None)
    if not 1 <= k <= most:
        raise ValueError(f"k is {k}; with {len(points)} points it must be between 1 and {most}")
    asked = len(points) if queries is None else len(queries)
    indices, distances = np.empty((asked, k), np.int64), np.empty((asked, k))
    for rows, block in distance_blocks(points, queries):
        values, places = _smallest(block, min(k + 1, block.shape[1]))
        found, near = places[:, :k].copy(), values[:, :k].copy()
        # Where the next is as near as the k-th, any of those that are as near were taken.
        for row in np.flatnonzero(values[:, k - 1] == values[:, -1]) if block.shape[1] > k else ():
            found[row] = np.argsort(block[row], kind="stable")[:k]
            near[row] = block[row, found[row]]
        order = np.lexsort((found, near))
        indices[rows] = np.take_along_axis(found, order, 1)
        distances[rows] = np.sqrt(np.take_along_axis(near, order, 1))
    return indices, distances


def _smallest(block: Floats, k: int) -> tuple[Floats, Indices]:
    """The k smallest values of each row, smallest first, and their columns; of equal ones any."""
    columns = block.shape[1]
    size = int((columns / (2 * k)) ** 0.5)
    if size < _WORTHWHILE:
        # torch selects several times faster than numpy where k is small
        values, places = torch.topk(torch.from_numpy(block), k, largest=False)
        return values.numpy(), places.numpy()
    # Most are sorted out by groups: k of the smallest are in the k groups with the least minima.
    count = columns // size
    minima = block[:, : size * count].reshape(-1, size, count).min(1)  # what is `count` columns apart is a group
    least = np.argpartition(minima, k - 1, axis=1)[:, :k]
    inside = (least[:, None] + count * np.arange(size)[:, None]).reshape(len(block), -1)
    left_over = np.broadcast_to(np.arange(size * count, columns), (len(block), columns - size * count))
    candidates = np.concatenate([inside, left_over], axis=1)
    near = np.take_along_axis(block, candidates, 1)
    best = np.argpartition(near, k - 1, axis=1)[:, :k]
    best = np.take_along_axis(best, np.take_along_axis(near, best, 1).argsort(1), 1)
    return np.take_along_axis(near, best, 1), np.take_along_axis(candidates, best, 1)
