"""Folds batch normalization into the convolutions of a prepared graph, exactly as its fake quantizers saw it.

torchao would do so while converting, by patterns that it captures anew each time (half a minute); and with its own
epsilon in place of the network's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compresslens.errors import UserError

_aten: Any = torch.ops.aten


@dataclass(frozen=True)
class FusedNodes:
    """What torchao makes of a convolution and its batch normalization.

    `scale = gamma / sqrt(running_var + eps)`; `batch_norm(convolution(x, quantize(weight * scale)) / scale + bias)`.
    """

    batchnorm: Any
    convolution: Any
    product: Any  # weight * scale
    variance: Any  # running_var + eps
    bias: Any  # the convolution's own, or None


def fused_nodes(graph: Any) -> Iterator[FusedNodes]:
    """The fused pairs in a prepared graph; a batch normalization that follows no convolution is not among them."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not _aten.batch_norm.default:
            continue
        value, bias = node.args[0], None
        if value.target is _aten.add.Tensor and getattr(value.args[1], "target", None) is _aten.reshape.default:
            value, bias = value.args[0], value.args[1].args[0]
        if value.target is not _aten.div.Tensor or getattr(value.args[1], "target", None) is not _aten.reshape.default:
            continue
        convolution, scale = value.args[0], value.args[1].args[0]
        product = convolution.args[1]
        product = product.args[0] if product.op == "call_module" else product
        yield FusedNodes(node, convolution, product, scale.args[1].args[0], bias)


def write_epsilon(graph: Any, epsilon: dict[str, float]) -> None:
    """Puts each batch normalization's own epsilon into the scale that its convolution's weight is multiplied by.

    Args:
        graph: from torchao's `prepare_qat_pt2e`.
        epsilon: by the name of the batch normalization's weight.
    """
    for pair in fused_nodes(graph):
        pair.variance.args = (pair.variance.args[0], epsilon[str(pair.batchnorm.args[1].target)])
    graph.recompile()


@torch.no_grad()
def fold_batchnorm(graph: Any) -> None:
    """Replaces each fused pair by one convolution with a bias, in place. The graph must be in eval mode.

    Raises:
        UserError: a weight is used by several convolutions.
    """
    for pair in list(fused_nodes(graph)):
        node, convolution = pair.batchnorm, pair.convolution
        name = str(pair.product.args[0].target)
        if len(pair.product.args[0].users) > 1:
            raise UserError(f"{name} is shared by several convolutions: such a network cannot be converted to INT8")
        gamma, beta, mean, variance = (_value(graph, argument) for argument in node.args[1:5])
        scale = gamma / torch.sqrt(variance + node.args[7])
        own_bias = 0.0 if pair.bias is None else _value(graph, pair.bias)
        weight = _value(graph, pair.product.args[0])
        weight.copy_(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
        owner = graph.get_submodule(name.rpartition(".")[0])
        owner.folded_bias = nn.Parameter((own_bias - mean) * scale + beta, requires_grad=False)
        with graph.graph.inserting_before(convolution):
            bias = graph.graph.get_attr(f"{name.rpartition('.')[0]}.folded_bias")
        pair.product.replace_all_uses_with(pair.product.args[0])
        convolution.args = (*convolution.args[:2], bias, *convolution.args[3:])
        node.replace_all_uses_with(convolution)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _value(graph: Any, node: Any) -> Any:
    """The tensor that a `get_attr` node reads."""
    owner, _, leaf = str(node.target).rpartition(".")
    return getattr(graph.get_submodule(owner), leaf)
