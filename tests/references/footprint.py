"""Slow, obvious counts of what a network costs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def macs_by_layers(network: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of the layers of a network in eval mode, from the shapes of their outputs and weights."""
    total = 0

    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        else:
            elements = inputs[0] if module.transposed else output
            total += elements.numel() * module.weight[0].numel()

    layers = [module for module in network.modules() if isinstance(module, nn.Linear | _ConvNd)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(torch.zeros(1, 3, image_size, image_size))
    for handle in handles:
        handle.remove()
    return total


def peak_of_a_chain(layers: nn.Sequential, images: Tensor) -> int:
    """Bytes of weights, input, and the two results that live at the same time when one layer follows the other."""
    weights = sum(t.numel() * t.element_size() for t in (*layers.parameters(), *layers.buffers()))
    sizes = [images.numel() * images.element_size()]
    value = images
    with torch.no_grad():
        for layer in layers:
            value = layer(value)
            sizes.append(value.numel() * value.element_size())
    at_once = [before + after for before, after in pairwise(sizes[1:])]
    return weights + sizes[0] + max(at_once + sizes[1:])
