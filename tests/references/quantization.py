"""Slow, obvious versions of quantization: float64, one number at a time."""

from __future__ import annotations

from collections.abc import Sequence


def learned_step(value: float, step: float, low: int, high: int) -> tuple[float, float, float]:
    """Equations 1, 2, 3 and 5 of Esser et al. 2020.

    Returns:
        (quantized value, its derivative by the value, its derivative by the step).
    """
    ratio = value / step
    if ratio <= low:
        return low * step, 0.0, float(low)
    if ratio >= high:
        return high * step, 0.0, float(high)
    return round(ratio) * step, 1.0, -ratio + round(ratio)


def least_squares_step(values: Sequence[float], steps: Sequence[float], low: int, high: int) -> float:
    """The step, among those given, with the least sum of squared errors."""

    def error(step: float) -> float:
        return sum((learned_step(value, step, low, high)[0] - value) ** 2 for value in values)

    return min(steps, key=error)


def packed_bits(values: Sequence[int], bits: int) -> list[int]:
    """Bytes whose bits, lowest first, are those of the values, lowest first; zeros fill the last byte."""
    text = "".join(format(value, f"0{bits}b")[::-1] for value in values)
    text += "0" * (-len(text) % 8)
    return [int(text[start : start + 8][::-1], 2) for start in range(0, len(text), 8)]
