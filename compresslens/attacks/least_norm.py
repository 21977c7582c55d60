"""The smallest step onto a linearized decision boundary within the pixel box."""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 25
TOLERANCE = 1e-5
LARGEST = 1e30  # factor; infinity would become NaN in a product with zero


def least_norm(normals: Tensor, offsets: Tensor, lower: Tensor, upper: Tensor, squared: Tensor | None = None) -> Tensor:
    """Solves, row by row, min ‖d‖² subject to normal·d ≥ offset and lower ≤ d ≤ upper, where lower ≤ 0 ≤ upper.

    Where the offset is negative it is normal·d ≤ offset: a step the other way.

    The solution is d = clip(λ·normal, lower, upper) with the least λ ≥ 0 that meets the constraint (from the KKT
    conditions). normal·d is concave and increasing in λ, so the secant through two points short of the offset leads to
    a third one short of it: no safeguard is needed, and an iteration is four passes over the pixels.

    Args:
        normals: M×D.
        offsets: M; zero: the solution is zero.
        lower: M×D, not positive.
        upper: M×D, not negative.
        squared: M, ‖normal‖² if known already.

    Returns:
        M×D. Where the box admits no solution, the point of the box that comes nearest to one.
    """
    squared = dot(normals, normals) if squared is None else squared
    factor = torch.where(squared > 0, (offsets / squared).clamp(-LARGEST, LARGEST), 0)
    factor_before, reached_before = torch.zeros_like(factor), torch.zeros_like(factor)
    for _ in range(ITERATIONS):
        steps = torch.mul(normals, factor[:, None])
        torch.clamp(steps, lower, upper, out=steps)
        reached = dot(normals, steps)
        slope = (reached - reached_before) / (factor - factor_before)
        left = offsets - reached
        # no slope: every pixel is at its bound
        short = (left.abs() > TOLERANCE * offsets.abs()) & ((left > 0) == (offsets > 0)) & (slope > 0)
        if not short.any():
            break
        further = (factor + left / slope).clamp(-LARGEST, LARGEST)
        factor_before = torch.where(short, factor, factor_before)
        reached_before = torch.where(short, reached, reached_before)
        factor = torch.where(short, further, factor)
    return steps


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Products of rows, M."""
    return (a * b).sum(1)
