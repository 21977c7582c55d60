"""How alike two networks see the same samples: linear centred kernel alignment with its interval."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from compresslens.embeddings.distances import Floats, as_points
from compresslens.errors import UserError
from compresslens.statistics import Interval

_ROWS = 512
# Dependence smaller than this share of what its terms could be is rounding.
_ROUNDING = 1e-12


def linear_cka(features: ArrayLike, reference: ArrayLike, *, unbiased: bool = True) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019) of two networks' features of the same samples.

    It does not change if either features are rotated, mirrored, moved or multiplied by a number.

    Args:
        features: N×D.
        reference: N×E, the same samples in the same order.
        unbiased: with the unbiased estimator of the dependence (Song et al. 2012, eq. 5) in all three places, as by
            Nguyen et al. 2021; about 0 for independent features however wide. Otherwise the original (eq. 4), which is
            near 1 for any features that are wider than there are samples.

    Returns:
        At most 1, for the same features; unbiased it can fall a little below 0, else it is in [0, 1]. NaN if either
        features are the same for all samples.

    Raises:
        UserError: different numbers of samples, fewer than 4 (2 if biased), or NaN or infinity.
    """
    x, y = _pair(features, reference, 4 if unbiased else 2)
    if unbiased:
        return float(_ratio(*(_Dependence(a, b).value for a, b in ((x, y), (x, x), (y, y)))))
    return float(_ratio(_products(x, y), _products(x, x), _products(y, y)))


def cka_interval(features: ArrayLike, reference: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Jackknife interval of the unbiased :func:`linear_cka`, from leaving out each sample once, in closed form.

    A bootstrap would not do: samples drawn twice are alike in both networks, which looks like dependence. The interval
    is symmetric for the inverse hyperbolic tangent of the CKA (Fisher's transformation), so it stays below 1.

    Args:
        features, reference: as of :func:`linear_cka`, N at least 5.
        confidence: in (0, 1).

    Returns:
        Lower and upper bound, or None where the CKA is not defined.

    Raises:
        ValueError: a confidence out of range.
        UserError: as :func:`linear_cka`.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    whole = linear_cka(features, reference)
    without = cka_without_each(features, reference)
    if not (np.isfinite(whole) and np.isfinite(without).all()):
        return None
    largest = 1 - 1e-15
    folded = np.arctanh(np.clip(without, -largest, largest))
    error = np.sqrt((len(folded) - 1) * folded.var())
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    middle = np.arctanh(np.clip(whole, -largest, largest))
    return float(min(np.tanh(middle - half), whole)), float(max(np.tanh(middle + half), whole))


def cka_without_each(features: ArrayLike, reference: ArrayLike) -> Floats:
    """The unbiased :func:`linear_cka` of all samples but one, for each: N values, NaN where not defined.

    Two students of one reference are compared by `N * whole - (N - 1) * without` (the jackknife's pseudo-values), in
    pairs. N must be at least 5.
    """
    x, y = _pair(features, reference, 5)
    return np.asarray(_ratio(*(_Dependence(a, b).without_each() for a, b in ((x, y), (x, x), (y, y)))))


class _Dependence:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion of linear kernels, without its factor.

    With K = XXᵀ and L = YYᵀ, both with zeros on the diagonal: tr(KL) + ΣK ΣL / ((n-1)(n-2)) - 2/(n-2) 1ᵀKL1. All terms
    follow from XᵀY and such, so no N×N matrix is needed; neither for all samples but one.
    """

    def __init__(self, x: Floats, y: Floats) -> None:
        self.n = len(x)
        norms_x, norms_y = (np.einsum("nd,nd->n", points, points) for points in (x, y))
        self.rows_x = x @ x.sum(0) - norms_x  # sums of K's rows
        self.rows_y = y @ y.sum(0) - norms_y
        self.shared = _row_products(x, y) - norms_x * norms_y  # the diagonal of KL
        self.crossed = y @ (y.T @ self.rows_x) - norms_y * self.rows_x  # L K1
        self.crossed += x @ (x.T @ self.rows_y) - norms_x * self.rows_y  # K L1

    @property
    def value(self) -> float:
        """For all samples, times 1 / n(n-3)."""
        joint = self.rows_x @ self.rows_y
        return float(_unbiased(self.n, self.shared.sum(), self.rows_x.sum(), self.rows_y.sum(), joint))

    def without_each(self) -> Floats:
        """For all samples but one, N values."""
        joint = self.rows_x @ self.rows_y - self.rows_x * self.rows_y - self.crossed + self.shared
        trace = self.shared.sum() - 2 * self.shared
        sums = self.rows_x.sum() - 2 * self.rows_x, self.rows_y.sum() - 2 * self.rows_y
        return np.asarray(_unbiased(self.n - 1, trace, *sums, joint))


def _unbiased(n: int, trace: Any, sum_x: Any, sum_y: Any, joint: Any) -> Any:
    found = trace + sum_x * sum_y / ((n - 1) * (n - 2)) - 2 * joint / (n - 2)
    return np.where(np.abs(found) < _ROUNDING * np.abs(trace), 0.0, found)


def _ratio(xy: Any, xx: Any, yy: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.minimum(np.where((xx > 0) & (yy > 0), xy / np.sqrt(xx * yy), np.nan), 1.0)


def _row_products(x: Floats, y: Floats) -> Floats:
    """The diagonal of XXᵀYYᵀ, by XᵀY or, where features are much wider, by blocks of XXᵀ."""
    if x.shape[1] * y.shape[1] <= len(x) * (x.shape[1] + y.shape[1]):
        return np.asarray(np.einsum("nd,nd->n", x @ (x.T @ y), y))
    blocks = (slice(start, start + _ROWS) for start in range(0, len(x), _ROWS))
    return np.concatenate([np.einsum("bn,bn->b", x[rows] @ x.T, y[rows] @ y.T) for rows in blocks])


def _products(x: Floats, y: Floats) -> float:
    return float(_row_products(x, y).sum())


def _pair(features: ArrayLike, reference: ArrayLike, least: int) -> tuple[Floats, Floats]:
    """Both, centred and of size one; zeros if all samples are the same."""
    pair = []
    for values, name in ((features, "features"), (reference, "features of the reference")):
        points = as_points(values, name)
        if (points == points[0]).all():
            pair.append(np.zeros_like(points))
        else:
            centred = points - points.mean(0)
            pair.append(centred / np.sqrt((centred**2).sum(1).mean()))
    if len(pair[0]) != len(pair[1]):
        raise UserError(f"there are features of {len(pair[0])} samples but the reference's are of {len(pair[1])}")
    if len(pair[0]) < least:
        raise UserError(f"there are {len(pair[0])} samples; at least {least} are needed")
    return pair[0], pair[1]
