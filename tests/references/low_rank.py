"""Slow, obvious versions of the factorizations: float64 numpy, one number at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


def array(values: Any) -> Array:
    """A tensor as float64 numpy."""
    if isinstance(values, Tensor):
        values = values.detach().double().numpy()
    return np.asarray(values, np.float64)


def weights(pieces: nn.Sequential) -> list[Array]:
    """The weights of the pieces, first things first."""
    return [array(piece.weight) for piece in pieces]


def svd_weight(reduce: Array, expand: Array) -> Array:
    """What R×I and O×R weights make together: O×I."""
    reduce, expand = reduce.reshape(len(reduce), -1), expand.reshape(len(expand), -1)
    result = np.zeros((len(expand), reduce.shape[1]))
    for o, i in np.ndindex(result.shape):
        result[o, i] = sum(expand[o, r] * reduce[r, i] for r in range(len(reduce)))
    return result


def spatial_weight(vertical: Array, horizontal: Array) -> Array:
    """What R×I×kh×1 and O×R×1×kw kernels make together: O×I×kh×kw."""
    rank, inputs, height, _ = vertical.shape
    outputs, _, _, width = horizontal.shape
    result = np.zeros((outputs, inputs, height, width))
    for o, i, y, x in np.ndindex(result.shape):
        result[o, i, y, x] = sum(horizontal[o, r, 0, x] * vertical[r, i, y, 0] for r in range(rank))
    return result


def tucker_weight(reduce: Array, core: Array, expand: Array) -> Array:
    """What R_in×I, R_out×R_in×kh×kw and O×R_out weights make together: O×I×kh×kw."""
    rank_out, rank_in, height, width = core.shape
    result = np.zeros((len(expand), reduce.shape[1], height, width))
    for o, i, y, x in np.ndindex(result.shape):
        for p, q in np.ndindex(rank_out, rank_in):
            result[o, i, y, x] += expand[o, p, 0, 0] * core[p, q, y, x] * reduce[q, i, 0, 0]
    return result


def cp_weight(reduce: Array, vertical: Array, horizontal: Array, expand: Array) -> Array:
    """What R×I, R×1×kh×1, R×1×1×kw and O×R weights make together: O×I×kh×kw."""
    rank, inputs = reduce.shape[:2]
    result = np.zeros((len(expand), inputs, vertical.shape[2], horizontal.shape[3]))
    for o, i, y, x in np.ndindex(result.shape):
        for r in range(rank):
            result[o, i, y, x] += (
                expand[o, r, 0, 0] * reduce[r, i, 0, 0] * vertical[r, 0, y, 0] * horizontal[r, 0, 0, x]
            )
    return result


def unfold(weight: Array, rows: Sequence[int]) -> Array:
    """A tensor as a matrix: the given dimensions make the rows, the others the columns."""
    columns = [dimension for dimension in range(weight.ndim) if dimension not in rows]
    shape = [int(np.prod([weight.shape[d] for d in dimensions])) for dimensions in (rows, columns)]
    result = np.zeros(shape)
    for index in np.ndindex(weight.shape):
        row = column = 0
        for dimension in rows:
            row = row * weight.shape[dimension] + index[dimension]
        for dimension in columns:
            column = column * weight.shape[dimension] + index[dimension]
        result[row, column] = weight[index]
    return result


def singular_values(matrix: Array) -> Array:
    """Descending, from the eigenvalues of the smaller of the two Gram matrices."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return np.sqrt(np.clip(np.linalg.eigvalsh(gram)[::-1], 0, None))


def rank(values: Array, energy: float) -> int:
    """The least rank that keeps a share of the squared values."""
    for number in range(1, len(values) + 1):
        if (values[:number] ** 2).sum() >= energy * (values**2).sum():
            return number
    return len(values)


def hosvd(weight: Array, rank_out: int, rank_in: int) -> Array:
    """The kernel projected on the leading left singular vectors of its first two unfoldings."""
    rows, columns = (np.linalg.svd(unfold(weight, [mode]))[0][:, :kept] for mode, kept in ((0, rank_out), (1, rank_in)))
    return np.einsum("oiyx,op,ap,iq,bq->abyx", weight, rows, rows, columns, columns)


def hooi(weight: Array, rank_out: int, rank_in: int, sweeps: int) -> Array:
    """Higher-order orthogonal iteration (De Lathauwer et al. 2000), from the higher-order SVD on."""
    columns = np.linalg.svd(unfold(weight, [1]))[0][:, :rank_in]
    rows = np.linalg.svd(unfold(weight, [0]))[0][:, :rank_out]
    for _ in range(sweeps):
        projected = np.einsum("oiyx,iq->oqyx", weight, columns)
        rows = np.linalg.svd(unfold(projected, [0]))[0][:, :rank_out]
        projected = np.einsum("oiyx,op->piyx", weight, rows)
        columns = np.linalg.svd(unfold(projected, [1]))[0][:, :rank_in]
    return np.einsum("oiyx,op,ap,iq,bq->abyx", weight, rows, rows, columns, columns)


def orthogonal_terms(weight: Array) -> list[tuple[float, list[Array]]]:
    """(length, four unit vectors) of terms that add up to the kernel and are orthogonal, longest first."""
    columns, rows = (np.linalg.svd(unfold(weight, [mode]))[0] for mode in (2, 3))
    terms: list[tuple[float, list[Array]]] = []
    for a, b in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
        slice_ = sum(
            weight[:, :, y, x] * columns[y, a] * rows[x, b]
            for y, x in itertools.product(range(weight.shape[2]), range(weight.shape[3]))
        )
        left, values, right = np.linalg.svd(slice_)
        terms += [(v, [left[:, n], right[n], columns[:, a], rows[:, b]]) for n, v in enumerate(values)]
    return sorted(terms, key=lambda term: -term[0])


def alternating_least_squares(weight: Array, factors: Sequence[Array], sweeps: int) -> Array:
    """CP without any ridge: each factor in turn is the solution of a dense least-squares problem. Gives the kernel."""
    factors = list(factors)
    for _, mode in itertools.product(range(sweeps), range(4)):
        others = [factor for number, factor in enumerate(factors) if number != mode]
        design = np.array(
            [
                [
                    np.prod([factor[place, r] for factor, place in zip(others, index, strict=True)])
                    for r in range(len(factors[0].T))
                ]
                for index in np.ndindex(*(len(factor) for factor in others))
            ]
        )
        factors[mode] = np.linalg.lstsq(design, unfold(weight, [mode]).T, rcond=None)[0].T
    return np.einsum("or,ir,yr,xr->oiyx", *factors)


def squared_error(one: Array, other: Array) -> float:
    """Sum of the squared differences."""
    return float(((one - other) ** 2).sum())
