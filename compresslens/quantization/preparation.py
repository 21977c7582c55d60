"""From a float network to torchao's graph with fake quantizers, past the traps on the way."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.errors import UserError

LEAST_GAMMA = 1e-6
"""Batch normalization weights of exactly 0 are set to this before a graph is prepared, which divides by them."""
_LEAST_SCALE = 2**-12
_SOURCES: dict[str, Any] = {
    "conv2d": nn.Conv2d,
    "linear": nn.Linear,
    "batch_norm": nn.BatchNorm2d,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "add": operator.add,
}
_BATCH = 4096  # largest batch the graph takes


def capture(backbone: nn.Module, image_size: int, like: Tensor) -> Any:
    """The network as a graph of ATen operators for batches of 1 to 4096 images.

    Raises:
        UserError: `torch.export` cannot follow the network.
    """
    example = torch.zeros(2, 3, image_size, image_size, dtype=like.dtype, device=like.device)
    shapes = ({0: torch.export.Dim("batch", min=1, max=_BATCH)},)
    try:
        return torch.export.export(backbone, (example,), dynamic_shapes=shapes, strict=False).module()
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"torch.export cannot capture the network, which quantization needs: {reason}") from error


def prepare(exported: Any, float_layers: Sequence[str]) -> Any:
    """Inserts fake quantizers where an x86 processor computes in INT8."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    from compresslens.quantization.torchao_parts import PartialQuantizer

    return prepare_qat_pt2e(exported, PartialQuantizer(float_layers).set_global(quantization_config()))


def quantization_config() -> Any:
    """x86's data types and ranges with unfused fake quantizers.

    The fused ones compute scales of weights that differ by 0.4 % from those of the converted network. Ranges of weights
    follow the weights at once (averaging constant 1): they are known, not sampled.
    """
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        get_default_x86_inductor_quantization_config,
    )

    from compresslens.quantization.torchao_parts import PassMinMaxObserver

    config = get_default_x86_inductor_quantization_config(is_qat=True)

    def unfused(spec: Any, observer: Any, **options: Any) -> Any:
        constructor = pt2e.FakeQuantize.with_args(observer=observer, eps=_LEAST_SCALE, **options)
        return dataclasses.replace(spec, observer_or_fake_quant_ctr=constructor)

    return dataclasses.replace(
        config,
        input_activation=unfused(config.input_activation, PassMinMaxObserver),
        output_activation=unfused(config.output_activation, PassMinMaxObserver),
        weight=unfused(config.weight, pt2e.MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0),
    )


def split_quantizers(graph: Any) -> tuple[list[str], list[str]]:
    """Names of the fake quantizers of weights, and of those of activations, each once."""
    from torchao.quantization.pt2e import FakeQuantizeBase

    found = {name: module for name, module in graph.named_modules() if isinstance(module, FakeQuantizeBase)}
    weights = [name for name, module in found.items() if module.is_per_channel]
    return weights, [name for name in found if name not in weights]


def calls(node: Any, operator: str) -> bool:
    """Whether a node calls the ATen operator of that name."""
    return node.op == "call_function" and str(node.target).startswith(f"aten.{operator}")


def scale_name(node: Any) -> str:
    """Name of the parameter that a batch normalization scales with."""
    return str(node.args[1].target)


def remove_drop_path(network: nn.Module) -> None:
    """Switches stochastic depth off: captured in training mode it would stay active for ever."""
    for module in network.modules():
        if type(module).__name__ in ("DropPath", "StochasticDepth"):
            for attribute in ("drop_prob", "p"):
                if hasattr(module, attribute):
                    setattr(module, attribute, 0.0)


@torch.no_grad()
def replace_zero_gammas(network: nn.Module) -> None:
    """Makes batch normalization weights of exactly 0 tiny: a prepared graph divides by them.

    Raises:
        UserError: a batch normalization is of a kind that torchao's patterns cannot take.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.weight is None or module.momentum is None or not module.track_running_stats:
                raise UserError(
                    "batch normalization without weights, momentum or running statistics cannot be quantized"
                )
            module.weight[module.weight == 0] = LEAST_GAMMA


def name_sources(graph: Any) -> None:
    """Says of every operator which layer it stands for, as torchao's patterns want to know.

    They go by the module that an operator comes from. So without this timm's convolutions with TensorFlow's padding
    would quietly stay in float, and a ReLU that is called twice (torchvision's ResNets) would be refused.
    """
    for node in graph.graph.nodes:
        operator_name = str(node.target).removeprefix("aten.").split(".")[0].removesuffix("_")
        if node.op == "call_function" and operator_name in _SOURCES:
            node.meta["source_fn_stack"] = [(node.name, _SOURCES[operator_name])]


def forget_batch_counts(graph: Any) -> None:
    """Takes the counting of batches out of the graph: it would go on in evaluation, and nothing reads it."""
    for node in list(graph.graph.nodes):
        if calls(node, "add_") and "num_batches_tracked" in str(getattr(node.args[0], "target", "")):
            graph.graph.erase_node(node)
    graph.recompile()
