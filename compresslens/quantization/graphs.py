"""Layers in flat graphs of operators (`torch.export`, torchao), where inner layers are no modules that could be hooked.

A graph remembers of each operator which layers it stood in. The output of a layer is that of its last operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

_FAKE_QUANTIZER = "activation_post_process"  # as torchao names them


def flat_graph(network: nn.Module) -> fx.GraphModule | None:
    """The part of a network that is a graph whose convolutions are operators, if there is one."""
    for module in network.modules():
        if isinstance(module, fx.GraphModule) and any(_calls(node, "aten.conv") for node in module.graph.nodes):
            return module
    return None


def is_converted(network: nn.Module) -> bool:
    """Whether activations are rounded for good, as in INT8, so that there is no gradient."""
    graph = flat_graph(network)
    return graph is not None and any(_rounds(node) for node in graph.graph.nodes)


def graph_layers(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """Dotted names of the layers in a graph, as the network had them, and the nodes with their outputs.

    What rounds a layer's output belongs to the layer, so that its output is what the next layer takes. Likewise a batch
    normalization that the graph computes within the convolution before it.
    """
    from compresslens.quantization.fold import fused_nodes

    normalized = {pair.convolution: pair.batchnorm for pair in fused_nodes(graph)}
    dependent: set[fx.Node] = set()
    layers: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op != "placeholder" and dependent.isdisjoint(node.all_input_nodes):
            continue  # computes with weights alone
        dependent.add(node)
        if node.op != "call_function" or _rounds(node):
            continue
        for name, _ in node.meta.get("nn_module_stack", {}).values():
            layers[name] = node
    return {name: _rounded(normalized.get(node, node)) for name, node in layers.items() if name}


def find_graph_layer(graph: fx.GraphModule, name: str) -> fx.Node | None:
    """The node with the output of a layer, by the layer's dotted name; None if there is no such layer in the graph."""
    return graph_layers(graph).get(name.removeprefix("backbone.").removeprefix("graph."))


@contextmanager
def graph_tap(graph: fx.GraphModule, node: fx.Node) -> Iterator[list[Tensor]]:
    """Collects the output of a node while the block is active, and starts the autograd graph there.

    Forward passes must be run under `torch.no_grad`; from the node on they run with autograd.

    Yields:
        A list which forward passes append that output to, a leaf.
    """
    outputs: list[Tensor] = []

    def start(result: Tensor) -> Tensor:
        outputs.append(result.detach().requires_grad_())
        torch.set_grad_enabled(True)
        return outputs[-1].clone()  # what follows may work in place

    with interpreted(graph, node, start):
        yield outputs


@contextmanager
def interpreted(graph: fx.GraphModule, node: fx.Node, replace: Callable[[Any], Any]) -> Iterator[None]:
    """While the block is active, what a node computes is handed to `replace`, and what that returns takes its place."""
    own = graph.__dict__.get("forward")
    # On the instance, in front of the class's: the graph is interpreted, node by node, instead of run as code.
    graph.forward = lambda *images: _Tapping(graph, node, replace).run(*images)
    try:
        yield
    finally:
        del graph.forward
        if own is not None:
            graph.forward = own


class _Tapping(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, node: fx.Node, replace: Callable[[Any], Any]) -> None:
        super().__init__(graph)
        self.node = node
        self.replace = replace

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        return self.replace(result) if node is self.node else result


def _rounded(node: fx.Node) -> fx.Node:
    """The node behind the rounding of a node's output, if all that follows takes it rounded."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.op == "call_module" and str(user.target).startswith(_FAKE_QUANTIZER):
            node = user
        elif _rounds(user):
            return next(iter(user.users))
        else:
            break
    return node


def _rounds(node: fx.Node) -> bool:
    return _calls(node, "quantized_decomposed.quantize_per_tensor")


def _calls(node: fx.Node, operator: str) -> bool:
    return node.op == "call_function" and str(node.target).startswith(operator)
