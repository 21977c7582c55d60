"""Where samples and classes move between a reference's map or features and another network's."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compresslens.embeddings.distances import Floats, as_points
from compresslens.embeddings.schedule import radius
from compresslens.errors import UserError


def displacements(positions: ArrayLike, reference: ArrayLike) -> Floats:
    """How far each sample lies from where it lies in the reference's map.

    Place and size of a t-SNE map mean nothing, so both are centred and divided by their RMS radius. Of two unrelated
    maps the mean is a little above 1.

    Args:
        positions: N×2, a map that was aligned with the reference's.
        reference: N×2.

    Returns:
        N distances in units of the RMS radius; NaN if all positions are the same in either.

    Raises:
        UserError: maps of different shape, or NaN or infinity.
    """
    return np.asarray(np.linalg.norm(_moves(positions, reference), axis=1))


def centroid_drift(positions: ArrayLike, reference: ArrayLike, labels: ArrayLike) -> dict[int, float]:
    """How far the centre of each class lies from where it lies in the reference's map.

    Args:
        positions, reference: as of :func:`displacements`.
        labels: N integers.

    Returns:
        Class to distance, in units of the RMS radius; NaN if all positions are the same in either map.

    Raises:
        UserError: as :func:`displacements`, or another number of labels than N.
    """
    moves = _moves(positions, reference)
    classes = _classes(labels, len(moves))
    return {int(c): float(np.linalg.norm(moves[classes == c].mean(0))) for c in np.unique(classes)}


def geometry_drift(features: ArrayLike, reference: ArrayLike, labels: ArrayLike) -> dict[int, float]:
    """How much the directions from a class to the others differ between two networks, whatever their width.

    In each network the means of the classes are taken relative to the mean of these means. The cosine between a class
    and every other is compared with that in the reference.

    Args:
        features: N×D.
        reference: N×E, the same samples in the same order.
        labels: N integers.

    Returns:
        Class to the mean absolute difference of its cosines, in [0, 2]; 0 for the same geometry. NaN if a mean has no
        direction (one class only, or all features the same).

    Raises:
        UserError: different numbers of samples or labels, or NaN or infinity.
    """
    x, y = as_points(features), as_points(reference, "features of the reference")
    if len(x) != len(y):
        raise UserError(f"there are features of {len(x)} samples but the reference's are of {len(y)}")
    classes = _classes(labels, len(x))
    names = np.unique(classes)
    difference = np.abs(_cosines(x, classes, names) - _cosines(y, classes, names))
    if len(names) == 1:
        return {int(names[0]): float("nan")}
    return {int(c): float(value) for c, value in zip(names, difference.sum(1) / (len(names) - 1), strict=True)}


def _moves(positions: ArrayLike, reference: ArrayLike) -> Floats:
    maps = as_points(positions, "positions"), as_points(reference, "positions of the reference")
    if maps[0].shape != maps[1].shape:
        raise UserError(f"the map has the shape {maps[0].shape} but the reference's has {maps[1].shape}")
    with np.errstate(invalid="ignore"):
        here, there = ((positions - positions.mean(0)) / radius(positions) for positions in maps)
    return np.asarray(here - there)


def _cosines(points: Floats, classes: NDArray[np.int64], names: NDArray[np.int64]) -> Floats:
    means = np.stack([points[classes == name].mean(0) for name in names])
    means -= means.mean(0)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    directions = np.divide(means, lengths, out=np.full_like(means, np.nan), where=lengths > 0)
    return np.asarray(directions @ directions.T)


def _classes(labels: ArrayLike, samples: int) -> NDArray[np.int64]:
    classes = np.asarray(labels)
    if classes.shape != (samples,):
        raise UserError(f"labels have the shape {classes.shape}; for these samples it must be ({samples},)")
    return classes.astype(np.int64)
