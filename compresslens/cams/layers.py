"""A forward pass that keeps the output of one layer, and the autograd graph behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.cams.pooling import PoolingTap
from compresslens.errors import UserError
from compresslens.networks.taps import feature_taps, find_layer
from compresslens.quantization.graphs import find_graph_layer, flat_graph, graph_tap


@dataclass
class Pass:
    """A forward pass.

    Attributes:
        activations: N×C×h×w, the layer's output, a leaf that the logits' graph starts at.
        logits: N×K.
        pooling: what was seen behind the global pooling; None if the layer was named.
    """

    activations: Tensor
    logits: Tensor
    pooling: PoolingTap | None


def tapped_pass(network: nn.Module, images: Tensor, layer: str | None) -> Pass:
    """Runs a network, up to the layer without autograd.

    Args:
        network: in eval mode, with autograd available: see `compresslens.networks.modes.input_gradients`. The inside of
            compiled modules runs uncompiled.
        images: N×3×H×W with N ≥ 1.
        layer: dotted name; None: whatever the global pooling takes, see `PoolingTap`.

    Raises:
        UserError: there is no such layer, it did not run, its output is no map N×C×h×w with h·w > 1, or the network has
            no such map.
    """
    if layer is None:
        return _to_pooling(network, images)
    graph = flat_graph(network)
    node = None if graph is None else find_graph_layer(graph, layer)
    tap = (
        graph_tap(graph, node)
        if graph is not None and node is not None
        else _module_tap(find_layer(network, layer), layer)
    )
    with torch.no_grad(), _uncompiled(network), tap as outputs:
        logits = network(images)
    if not outputs:
        raise UserError(f"layer '{layer}' does not run: name one that does")
    activations = outputs[-1]
    if activations.ndim != 4 or activations.shape[2:].numel() < 2:
        shape = "×".join(str(size) for size in activations.shape)
        raise UserError(f"layer '{layer}' returns {shape}, not a map N×C×h×w with h·w > 1: name an earlier layer")
    return Pass(activations, logits, None)


def _to_pooling(network: nn.Module, images: Tensor) -> Pass:
    pooling = PoolingTap(len(images))
    with torch.no_grad(), _uncompiled(network), pooling:
        logits = network(images)
    if pooling.map is None or not pooling.convolved:
        raise UserError(
            "the network pools or flattens no map N×C×h×w with h·w > 1 that comes from a convolution: class activation "
            "maps are for convolutional networks; if it is one, name a layer with such an output, or take larger images"
        )
    return Pass(pooling.map, logits, pooling)


@contextmanager
def _module_tap(layer: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """As `graph_tap`. Not `feature_taps`, to which a layer that is called "features" is something else."""
    outputs: list[Tensor] = []

    def start_graph(_layer: nn.Module, _inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise UserError(f"layer '{name}' returns a {type(output).__name__}, not a tensor: name a layer inside it")
        outputs.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)
        return outputs[-1].clone()  # what follows may work in place

    handle = layer.register_forward_hook(start_graph)
    try:
        yield outputs
    finally:
        handle.remove()


def _uncompiled(network: nn.Module) -> AbstractContextManager[Any]:
    """Compiled code shows neither operators nor nodes."""
    return feature_taps(network, ())
