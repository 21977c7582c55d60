"""Slow, obvious versions of pruning: float64, one number at a time, lists instead of tensors."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any


def lamp(squares: list[float]) -> list[float]:
    """Lee et al. 2021, equation 3: each square over the sum of those that come no earlier in ascending order."""
    order = sorted(range(len(squares)), key=lambda index: (squares[index], index))
    scores = [0.0] * len(squares)
    for place, index in enumerate(order):
        total = math.fsum(squares[later] for later in order[place:])
        scores[index] = squares[index] / total if total > 0 else 0.0
    return scores


def global_pruning(
    scores: dict[str, list[float]], alive: dict[str, list[bool]], costs: dict[str, int], amount: int
) -> dict[str, list[bool]]:
    """Takes one weight after the other, dead ones first, then the least score per cost, until the amount is made up."""
    weights = [(name, index) for name, values in scores.items() for index in range(len(values))]

    def price(weight: tuple[str, int]) -> float:
        name, index = weight
        return scores[name][index] / costs[name] if alive[name][index] else -1.0

    stay = {name: list(values) for name, values in alive.items()}
    pruned = 0
    for name, index in sorted(weights, key=price):  # stable: of equals the first
        if pruned >= amount:
            break
        stay[name][index] = False
        pruned += costs[name]
    return stay


def pattern(rows: list[list[float]], stay: int) -> list[list[bool]]:
    """Which of each row stay, by trying every choice: the one of greatest sum."""
    masks = []
    for row in rows:
        best = max(itertools.combinations(range(len(row)), stay), key=lambda kept: sum(row[index] for index in kept))
        masks.append([index in best for index in range(len(row))])
    return masks


def rows_along_inputs(weight: Any, of: int) -> list[list[float]]:
    """Rows of a weight O×I×kh×kw (nested lists): output channel, kernel row, kernel column, then inputs in order."""
    outputs, inputs, height, width = len(weight), len(weight[0]), len(weight[0][0]), len(weight[0][0][0])
    return [
        [weight[o][first + offset][y][x] for offset in range(of)]
        for o in range(outputs)
        for y in range(height)
        for x in range(width)
        for first in range(0, inputs, of)
    ]


def cubic_sparsity(step: Fraction, begin: Fraction, end: Fraction, initial: Fraction, final: Fraction) -> Fraction:
    """Zhu & Gupta 2017, equation 1."""
    return final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3


def distances_to_others(filters: list[list[float]]) -> list[float]:
    """He et al. 2019, equation 4: summed Euclidean distances of each filter to all filters."""
    return [math.fsum(math.dist(one, other) for other in filters) for one in filters]


def bits(mask: list[bool]) -> list[int]:
    """Bytes, the first value in the lowest bit."""
    return [
        sum(2**place for place, value in enumerate(mask[first : first + 8]) if value)
        for first in range(0, len(mask), 8)
    ]
