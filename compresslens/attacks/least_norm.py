"""The smallest step onto a linearized decision boundary within the pixel box."""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 25
TOLERANCE = 1e-6


def least_norm(normals: Tensor, offsets: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Solves, row by row, min ‖d‖² subject to normal·d ≥ offset and lower ≤ d ≤ upper, where lower ≤ 0 ≤ upper.

    The solution is d = clip(λ·normal, lower, upper) with the least λ ≥ 0 that meets the constraint (from the KKT
    conditions); normal·d is concave, increasing and piecewise linear in λ, so Newton's method from below never
    overshoots.

    Args:
        normals: M×D.
        offsets: M; not positive: the solution is zero.
        lower: M×D, not positive.
        upper: M×D, not negative.

    Returns:
        M×D. Where the box admits no solution, the point of the box that comes nearest to one.
    """
    offsets = offsets.clamp_min(0)
    # What points out of the box at once never moves: without it the first Newton step is nearly exact.
    movable = ((normals > 0) & (upper > 0)) | ((normals < 0) & (lower < 0))
    normals = normals * movable
    slope = _dot(normals, normals)
    factor = _divide(offsets, slope)
    steps = torch.clamp(factor[:, None] * normals, lower, upper)
    for _ in range(ITERATIONS):
        missing = offsets - _dot(normals, steps)
        short = missing > TOLERANCE * offsets
        if not short.any():
            break
        free = normals * ((steps > lower) & (steps < upper))
        slope = _dot(free, free)
        factor = torch.where(short, factor + _divide(missing, slope), factor)
        steps = torch.clamp(factor[:, None] * normals, lower, upper)
    return steps


def least_norm_signed(normals: Tensor, offsets: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The same for offsets of either sign: a negative one asks for normal·d ≤ offset, a step back to the boundary."""
    forward = (offsets >= 0)[:, None]
    return least_norm(torch.where(forward, normals, -normals), offsets.abs(), lower, upper)


def _divide(missing: Tensor, slope: Tensor) -> Tensor:
    # no slope: there is no gradient, or every pixel is at its bound; infinity would become NaN in the product
    return torch.where(slope > 0, (missing / slope).clamp_max(1e30), 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)
