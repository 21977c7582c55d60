"""The box-constrained least-norm step by bisection of its multiplier, one row at a time, in float64."""

import numpy as np


def least_norm_reference(normal, offset, lower, upper):
    """min ‖d‖ subject to normal·d ≥ offset, lower ≤ d ≤ upper; the box's best corner where that is impossible."""
    normal, lower, upper = (np.asarray(v, dtype=np.float64) for v in (normal, lower, upper))
    if offset <= 0:
        return np.zeros_like(normal)
    corner = np.where(normal > 0, upper, np.where(normal < 0, lower, 0.0))
    if normal @ corner < offset:
        return corner
    low, high = 0.0, 1.0
    while normal @ np.clip(high * normal, lower, upper) < offset * (1 - 1e-12):
        high *= 2
        if high > 1e18:
            return corner
    for _ in range(200):
        middle = (low + high) / 2
        if normal @ np.clip(middle * normal, lower, upper) < offset:
            low = middle
        else:
            high = middle
    return np.clip(high * normal, lower, upper)
