"""Slow, obvious versions of the measures on maps: float64, one image and one pixel at a time."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # top, bottom, left, right, all inside


def pointing(values: Array, mask: Mask, tolerance: int = 0) -> float:
    height, width = mask.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    objects = [pixel for pixel in pixels if mask[pixel]]
    if not objects:
        return math.nan

    def hit(pixel: tuple[int, int]) -> bool:
        return any((pixel[0] - y) ** 2 + (pixel[1] - x) ** 2 <= tolerance**2 for y, x in objects)

    maxima = [pixel for pixel in pixels if values[pixel] == values.max()]
    if len(maxima) == len(pixels):
        return sum(map(hit, pixels)) / len(pixels)
    return float(any(map(hit, maxima)))


def energy(values: Array, mask: Mask) -> float:
    positive = [(max(float(value), 0.0), bool(inside)) for value, inside in zip(values.flat, mask.flat, strict=True)]
    if not mask.any():
        return math.nan
    total = math.fsum(value for value, _ in positive)
    if total == 0:
        return float(mask.mean())
    return math.fsum(value for value, inside in positive if inside) / total


def boxes(mask: Mask) -> list[Box]:
    """Around each set of pixels that touch, if only by their corners: flood fill."""
    left_over = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left_over:
        queue = deque([left_over.pop()])
        component = []
        while queue:
            y, x = queue.popleft()
            component.append((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left_over
            left_over -= around
            queue.extend(around)
        ys, xs = zip(*component, strict=True)
        found.append((min(ys), max(ys), min(xs), max(xs)))
    return found


def box_overlap(a: Box, b: Box) -> float:
    def pixels(box: Box) -> set[tuple[int, int]]:
        return {(y, x) for y in range(box[0], box[1] + 1) for x in range(box[2], box[3] + 1)}

    return len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b))


def best_overlap(values: Array, mask: Mask, threshold: float) -> float:
    true = boxes(mask)
    if not true:
        return math.nan
    estimated = boxes(values > threshold * values.max())
    return max((box_overlap(a, b) for a in estimated for b in true), default=0.0)


def max_box_accuracy(overlaps: list[list[float]], required: tuple[float, ...]) -> float:
    """Of overlaps N×T, all known: the best threshold for each required overlap, then the mean."""
    best = [
        max(sum(row[t] >= bound for row in overlaps) / len(overlaps) for t in range(len(overlaps[0])))
        for bound in required
    ]
    return sum(best) / len(best)


def average_precision(scores: list[float], on_object: list[bool]) -> float:
    """Threshold after threshold, from high to low: precision times the recall gained."""
    positives = sum(on_object)
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        found = [inside for score, inside in zip(scores, on_object, strict=True) if score >= threshold]
        precision = sum(found) / len(found)
        area += precision * (sum(found) / positives - recall)
        recall = sum(found) / positives
    return area


def cell_share(values: Array, cells: int, row: int, column: int) -> float:
    positive = np.maximum(values, 0)
    height, width = values.shape[0] // cells, values.shape[1] // cells
    cell = positive[row * height : (row + 1) * height, column * width : (column + 1) * width]
    return float(cell.sum() / positive.sum())


def replacement_auc(
    probability: Callable[[Array], float], start: Array, end: Array, values: Array, steps: int
) -> float:
    """Pixels of `end` (C×H×W) take the place of those of `start`, highest of the map first; trapezoidal rule."""
    height, width = values.shape
    order = sorted(((y, x) for y in range(height) for x in range(width)), key=lambda p: (-values[p], p))
    curve = []
    for step in range(steps + 1):
        image = start.copy()
        for y, x in order[: round(height * width * step / steps)]:
            image[:, y, x] = end[:, y, x]
        curve.append(probability(image))
    return sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / steps


def impute(image: Array, removed: Mask) -> Array:
    """The linear system of noisy linear imputation, entry by entry, solved as a dense one."""
    height, width = removed.shape
    unknown = [(y, x) for y in range(height) for x in range(width) if removed[y, x]]
    matrix = np.zeros((len(unknown), len(unknown)))
    right = np.zeros((len(unknown), len(image)))
    for row, (y, x) in enumerate(unknown):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                there = (y + dy, x + dx)
                if (dy, dx) == (0, 0) or not (0 <= there[0] < height and 0 <= there[1] < width):
                    continue
                weight = 1 / 12 if dy and dx else 1 / 6
                matrix[row, row] += weight
                if removed[there]:
                    matrix[row, unknown.index(there)] -= weight
                else:
                    right[row] += weight * image[:, there[0], there[1]]
    filled = image.copy()
    for (y, x), colour in zip(unknown, np.linalg.solve(matrix, right), strict=True):
        filled[:, y, x] = colour
    return filled


def ssim(a: Array, b: Array) -> float:
    """Wang et al. 2004, equation 13, a window around every pixel (borders reflected), then the mean."""
    offsets = range(-5, 6)
    weights = np.array([[math.exp(-(dy * dy + dx * dx) / (2 * 1.5**2)) for dx in offsets] for dy in offsets])
    weights /= weights.sum()
    first, second = np.pad(a, 5, mode="reflect"), np.pad(b, 5, mode="reflect")
    total = 0.0
    for y in range(a.shape[0]):
        for x in range(a.shape[1]):
            p, q = first[y : y + 11, x : x + 11], second[y : y + 11, x : x + 11]
            mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
            variance_p, variance_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
            covariance = (weights * (p - mean_p) * (q - mean_q)).sum()
            luminance = (2 * mean_p * mean_q + 0.01**2) / (mean_p**2 + mean_q**2 + 0.01**2)
            total += luminance * (2 * covariance + 0.03**2) / (variance_p + variance_q + 0.03**2)
    return total / a.size
