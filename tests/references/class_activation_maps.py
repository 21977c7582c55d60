"""Class activation maps by their definitions, in float64, one pixel after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Map = NDArray[np.float64]


def gradient(head: Callable[[Tensor], Tensor], activations: Map, number: int) -> Map:
    """Of a logit, with respect to the activations C×h×w of one image; `head` takes 1×C×h×w in float64."""
    point = torch.from_numpy(activations)[None].requires_grad_()
    (found,) = torch.autograd.grad(head(point)[0, number], point)
    return found[0].numpy()


def weighted(method: str, activations: Map, gradients: Map) -> Map:
    """The map h×w of one image before anything is clipped or scaled."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for c in range(channels):
        mean, plus_plus = gradients[c].sum() / (height * width), plus_plus_weight(activations[c], gradients[c])
        for y in range(height):
            for x in range(width):
                weight = {
                    "grad_cam": mean,
                    "grad_cam_plus_plus": plus_plus,
                    "hires_cam": gradients[c, y, x],
                    "layer_cam": max(gradients[c, y, x], 0),
                }[method]
                result[y, x] += weight * activations[c, y, x]
    return result


def plus_plus_weight(activations: Map, gradients: Map) -> float:
    """Chattopadhyay et al. 2018, equations 15 and 19, for the exponential of the logit, as everybody computes them."""
    weight = 0.0
    for one in gradients.flatten():
        if one != 0:
            alpha = one**2 / (2 * one**2 + activations.sum() * one**3 + 1e-6)
            weight += alpha * max(one, 0)
    return weight


def scaled(values: Map, height: int, width: int) -> Map:
    """Clipped at 0, scaled to [0, 1], enlarged, scaled again."""
    return unit(bilinear(unit(np.maximum(values, 0)), height, width))


def unit(values: Map) -> Map:
    values = values - values.min()
    return values / (values.max() + 1e-7)


def bilinear(values: Map, height: int, width: int) -> Map:
    """Pixels are squares whose centres lie at halves; beyond the outermost centres, the outermost values."""
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            result[y, x] = _at(values, (y + 0.5) / height * values.shape[0], (x + 0.5) / width * values.shape[1])
    return result


def _at(values: Map, y: float, x: float) -> float:
    total = 0.0
    top, left = int(np.floor(y - 0.5)), int(np.floor(x - 0.5))
    for row in (top, top + 1):
        for column in (left, left + 1):
            share = (1 - abs(y - 0.5 - row)) * (1 - abs(x - 0.5 - column))
            inside = min(max(row, 0), len(values) - 1), min(max(column, 0), values.shape[1] - 1)
            total += share * values[inside]
    return total
