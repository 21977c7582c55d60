"""Makes of PyTorch's INT8 graph, which suits its own compiler, one that ONNX Runtime, too, computes in INT8.

PyTorch leaves the output of a convolution in float where a residual is added to it: its compiler fuses the sum, and so
does OpenVINO. ONNX Runtime then computes the whole convolution in float. Here these outputs are rounded, too; OpenVINO
leaves that out again.

It changes what is computed by one more rounding for each sum, as large as those that are there: whether that matters is
for the comparison with the network to say. Narrower ranges did not help where they were tried: each rounding was finer,
but what they cut off showed in the logits.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.networks.modes import evaluation_mode

BATCH = 32
LEVELS = 255


def for_runtimes(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy of an INT8 network that computes in INT8 where a runtime of ONNX files would not.

    Args:
        network: INT8, see `ready`.
        images: N×3×S×S, on which the ranges of what is newly rounded are measured: least and greatest value.
    """
    own = copy.deepcopy(network)
    for graph in [module for module in own.modules() if isinstance(module, torch.fx.GraphModule)]:
        places = [node for node in graph.graph.nodes if _is_summand(node)]
        if places:
            _round(graph, _ranges(own, graph, places, images))
            graph.recompile()
    return own


def _is_summand(node: Any) -> bool:
    """Whether a node is an INT8 convolution or linear layer whose output is an operand of a sum."""
    if not _calls(node, "conv", "linear"):
        return False
    source = node.args[0]
    return _calls(source, "dequantize") and any(_calls(user, "add") for user in node.users)


def _calls(node: Any, *operators: str) -> bool:
    if not isinstance(node, torch.fx.Node) or node.op != "call_function":
        return False
    return str(node.target).partition(".")[2].startswith(operators)


def _ranges(network: nn.Module, graph: Any, places: list[Any], images: Tensor) -> dict[Any, tuple[float, float]]:
    """Least and greatest value of each place."""
    ranges = dict.fromkeys(places, (0.0, 0.0))

    class Observer(torch.fx.Interpreter):
        def run_node(self, node: Any) -> Any:
            value = super().run_node(node)
            if node in ranges:
                low, high = ranges[node]
                ranges[node] = min(low, float(value.min())), max(high, float(value.max()))
            return value

    observer = Observer(graph)

    def observe(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        observer.run(*inputs)

    handle = graph.register_forward_pre_hook(observe)
    try:
        with evaluation_mode(network):
            for batch in images.split(BATCH):
                network(batch)
    finally:
        handle.remove()
    return ranges


def _round(graph: Any, ranges: dict[Any, tuple[float, float]]) -> None:
    operators = torch.ops.quantized_decomposed
    for node, (low, high) in ranges.items():
        scale = max((high - low) / LEVELS, torch.finfo(torch.float32).tiny)
        options = (scale, round(-low / scale), 0, LEVELS, torch.uint8)
        users = list(node.users)
        with graph.graph.inserting_after(node):
            integers = graph.graph.call_function(operators.quantize_per_tensor.default, (node, *options))
        with graph.graph.inserting_after(integers):
            rounded = graph.graph.call_function(operators.dequantize_per_tensor.default, (integers, *options))
        for user in users:
            user.replace_input_with(node, rounded)
