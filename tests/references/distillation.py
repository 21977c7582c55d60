"""Slow, obvious versions of the distillation losses: float64, one number at a time. Arguments are tensors or lists."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Row = list[float]
Map = list[list[float]]


def softmax(logits: Row) -> Row:
    """Probabilities that sum to 1."""
    largest = max(logits)
    exponentials = [math.exp(value - largest) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def kl(p: Row, q: Row) -> float:
    """KL(p ‖ q)."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def logit_kd(student: Any, teacher: Any, temperature: float) -> float:
    """Mean over the samples of T² · KL(teacher ‖ student)."""
    divergences = []
    for ours, theirs in zip(_list(student), _list(teacher), strict=True):
        p = softmax([value / temperature for value in theirs])
        q = softmax([value / temperature for value in ours])
        divergences.append(temperature**2 * kl(p, q))
    return _mean(divergences)


def decoupled_kd(
    student: Any, teacher: Any, labels: Any, temperature: float, alpha: float, beta: float | None
) -> float:
    """Mean of T² · (alpha · TCKD + beta · NCKD); beta None = each sample's own 1 - p_t of the teacher."""
    losses = []
    for ours, theirs, label in zip(_list(student), _list(teacher), _list(labels), strict=True):
        p = softmax([value / temperature for value in theirs])
        q = softmax([value / temperature for value in ours])
        # not 1 - p, which loses what is small
        rest_p, rest_q = (math.fsum(v for number, v in enumerate(d) if number != label) for d in (p, q))
        target_class = kl([p[label], rest_p], [q[label], rest_q])
        other_p = [value / temperature for number, value in enumerate(theirs) if number != label]
        other_q = [value / temperature for number, value in enumerate(ours) if number != label]
        other_classes = kl(softmax(other_p), softmax(other_q))
        factor = rest_p if beta is None else beta
        losses.append(temperature**2 * (alpha * target_class + factor * other_classes))
    return _mean(losses)


def hint(student: Any, teacher: Any, weight: Any = None, bias: Any = None) -> float:
    """Mean squared difference of (N, C, H, W) maps after the adapter (weight (C_t, C_s), bias C_t) and pooling."""
    squares = []
    for ours, theirs in zip(_list(student), _list(teacher), strict=True):
        if weight is not None:
            ours = _convolve(ours, _list(weight), _list(bias))
        height = min(len(ours[0]), len(theirs[0]))
        width = min(len(ours[0][0]), len(theirs[0][0]))
        for our_map, their_map in zip(ours, theirs, strict=True):
            pair = zip(
                _flat(average_pool(our_map, height, width)), _flat(average_pool(their_map, height, width)), strict=True
            )
            squares += [(a - b) ** 2 for a, b in pair]
    return _mean(squares)


def attention_transfer(student: Any, teacher: Any, power: float) -> float:
    """Mean over samples and positions of the squared difference of unit attention maps."""
    squares = []
    for ours, theirs in zip(_list(student), _list(teacher), strict=True):
        height = min(len(ours[0]), len(theirs[0]))
        width = min(len(ours[0][0]), len(theirs[0][0]))
        vectors = []
        for channels in (ours, theirs):
            pooled = [_flat(average_pool(channel, height, width)) for channel in channels]
            total = [sum(abs(value) ** power for value in position) for position in zip(*pooled, strict=True)]
            vectors.append(unit(total))
        squares += [(a - b) ** 2 for a, b in zip(*vectors, strict=True)]
    return _mean(squares)


def relational(student: Any, teacher: Any, distance_weight: float, angle_weight: float) -> float:
    """Huber losses between relative distances of all pairs and between cosines of all triplets of (N, D) features."""
    ours, theirs = _list(student), _list(teacher)
    count = len(ours)
    if count == 1:
        return 0.0
    scales = []
    for points in (ours, theirs):
        distances = [math.dist(points[i], points[j]) for i in range(count) for j in range(count) if i != j]
        scales.append(_mean(distances) or 1.0)
    pairs, triplets = [], []
    for i in range(count):
        for j in range(count):
            difference = math.dist(ours[i], ours[j]) / scales[0] - math.dist(theirs[i], theirs[j]) / scales[1]
            pairs.append(huber(difference))
            for k in range(count):
                triplets.append(huber(_cosine(ours[i], ours[j], ours[k]) - _cosine(theirs[i], theirs[j], theirs[k])))
    return distance_weight * _mean(pairs) + angle_weight * _mean(triplets)


def class_activation(student: Any, student_gradient: Any, teacher: Any, teacher_gradient: Any) -> float:
    """Mean over samples of the squared distance of unit Grad-CAMs; (N, C, H, W) activations and logit gradients."""
    losses = []
    for ours, our_slope, theirs, their_slope in zip(
        _list(student), _list(student_gradient), _list(teacher), _list(teacher_gradient), strict=True
    ):
        our_map = grad_cam(ours, our_slope)
        their_map = resize(grad_cam(theirs, their_slope), len(our_map), len(our_map[0]))
        a, b = unit(_flat(our_map)), unit(_flat(their_map))
        losses.append(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) if any(a) and any(b) else 0.0)
    return _mean(losses)


def grad_cam(activation: list[Map], gradient: list[Map]) -> Map:
    """ReLU(sum of channels, each times the mean of its gradient)."""
    weights = [_mean(_flat(channel)) for channel in gradient]
    height, width = len(activation[0]), len(activation[0][0])
    return [
        [max(0.0, sum(w * c[y][x] for w, c in zip(weights, activation, strict=True))) for x in range(width)]
        for y in range(height)
    ]


def numeric_gradient(score: Callable[[Tensor], Tensor], point: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a scalar function, in float64."""
    gradient = torch.zeros_like(point, dtype=torch.float64)
    for number in range(point.numel()):
        ends = []
        for sign in (1, -1):
            moved = point.detach().double().clone()
            moved.view(-1)[number] += sign * step
            ends.append(float(score(moved)))
        gradient.view(-1)[number] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def average_pool(values: Map, height: int, width: int) -> Map:
    """Mean of the cells that each target cell overlaps."""
    rows = [(y * len(values) // height, -(-(y + 1) * len(values) // height)) for y in range(height)]
    columns = [(x * len(values[0]) // width, -(-(x + 1) * len(values[0]) // width)) for x in range(width)]
    return [[_mean([values[y][x] for y in range(*row) for x in range(*column)]) for column in columns] for row in rows]


def resize(values: Map, height: int, width: int) -> Map:
    """Pool the sides that shrink, then interpolate bilinearly the sides that grow (pixel centres at +0.5)."""
    values = average_pool(values, min(height, len(values)), min(width, len(values[0])))

    def neighbours(place: int, old: int, new: int) -> list[tuple[int, float]]:
        where = max(0.0, (place + 0.5) * old / new - 0.5)
        low = int(where)
        return [(low, 1 - where + low), (min(low + 1, old - 1), where - low)]

    return [
        [
            sum(
                a * b * values[i][j]
                for i, a in neighbours(y, len(values), height)
                for j, b in neighbours(x, len(values[0]), width)
            )
            for x in range(width)
        ]
        for y in range(height)
    ]


def unit(vector: Row) -> Row:
    """The vector at length 1, or zeros."""
    length = math.hypot(*vector)
    return [value / length if length else 0.0 for value in vector]


def huber(difference: float) -> float:
    """Quadratic up to 1, linear beyond."""
    return difference**2 / 2 if abs(difference) <= 1 else abs(difference) - 0.5


def _cosine(i: Row, j: Row, k: Row) -> float:
    a = unit([x - y for x, y in zip(i, j, strict=True)])
    b = unit([x - y for x, y in zip(k, j, strict=True)])
    return sum(x * y for x, y in zip(a, b, strict=True))


def _convolve(maps: list[Map], weight: list[Row], bias: Row) -> list[Map]:
    height, width = len(maps[0]), len(maps[0][0])
    return [
        [
            [offset + sum(w * m[y][x] for w, m in zip(row, maps, strict=True)) for x in range(width)]
            for y in range(height)
        ]
        for row, offset in zip(weight, bias, strict=True)
    ]


def _list(values: Any) -> Any:
    return values.tolist() if isinstance(values, Tensor) else values


def _flat(values: Map) -> Row:
    return [value for row in values for value in row]


def _mean(values: Row) -> float:
    return math.fsum(values) / len(values)
