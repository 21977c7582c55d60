"""INT8 quantization-aware networks: torchao's PT2E graph in a module whose train and eval modes can be trusted.

torchao prepares a flat graph of ATen operators with fake quantizers in it (Jacob et al. 2018, arXiv:1712.05877:
per-channel symmetric int8 weights, per-tensor affine uint8 activations, batch normalization folded into the convolution
for the quantizer's eyes). Such a graph has no modes of its own: dropout, batch normalization and observers have them
written into the graph. :class:`FakeQuantGraph` owns the switch.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.networks.changes import Change, record_change
from compresslens.networks.taps import classifier_name, find_layer
from compresslens.quantization.fold import write_epsilon

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


class FakeQuantGraph(nn.Module):
    """A backbone with fake quantizers: what INT8 inference will compute, but differentiable (straight-through).

    Args:
        backbone: float network from normalized images N×3×S×S to logits; it is copied.
        image_size: S.
        float_layers: dotted names of layers that stay in float.

    Attributes:
        graph: torchao's prepared graph; parameters keep their names within it.
        classifier_name: name of the layer that computes the logits.
        observers_frozen: keep the ranges of activations as they are, in training, too.
        batchnorm_frozen: use the running statistics in training, too, and keep them as they are.

    Raises:
        UserError: a layer does not exist, or the network cannot be captured or holds nothing to quantize.
    """

    def __init__(self, backbone: nn.Module, image_size: int, float_layers: Sequence[str] = ()) -> None:
        super().__init__()
        for name in float_layers:
            find_layer(backbone, name)
        original: Any = copy.deepcopy(backbone)
        self.classifier_name = f"graph.{classifier_name(original)}"
        self.num_classes = getattr(backbone, "num_classes", None)
        _remove_drop_path(original)
        _replace_zero_gammas(original)
        self._batchnorm = {
            f"{name}.weight": (module.momentum, module.eps)
            for name, module in original.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        weight = next(original.parameters())
        exported = capture(original.train(), image_size, weight)
        _forget_batch_counts(exported)
        _name_sources(exported)
        self._dropout = [node.args[1] for node in exported.graph.nodes if _is(node, "dropout")]
        self.graph = prepare(exported, float_layers)
        write_epsilon(self.graph, {name: epsilon for name, (_, epsilon) in self._batchnorm.items()})
        self._weights, self._activations = split_quantizers(self.graph)
        if not self._weights:
            raise UserError("the network holds no layer that could be quantized")
        self.observers_frozen = False
        self.batchnorm_frozen = False
        self._mode: tuple[bool, bool, bool] | None = None
        with torch.no_grad(), observing(self):  # gives the per-channel scales their sizes
            self.graph(torch.zeros(2, 3, image_size, image_size, dtype=weight.dtype, device=weight.device))
        for quantizer in self.activation_quantizers():
            quantizer.activation_post_process.forget()
        self.train(backbone.training)

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×C of normalized images N×3×S×S."""
        self._switch(self.training, self.training and not self.batchnorm_frozen, self.training)
        if self._mode is not None and self._mode[2]:
            for quantizer in self.activation_quantizers():
                quantizer.activation_post_process.new_pass = True
        return self.graph(images)

    def train(self, mode: bool = True) -> FakeQuantGraph:
        """Sets the flags; the graph follows at the next forward pass (its own `train` is forbidden by torchao)."""
        for module in self.modules():
            module.training = mode
        return self

    def weight_quantizers(self) -> list[Any]:
        """Fake quantizers of weights."""
        return [self.graph.get_submodule(name) for name in self._weights]

    def activation_quantizers(self) -> list[Any]:
        """Fake quantizers of activations."""
        return [self.graph.get_submodule(name) for name in self._activations]

    def _switch(self, dropout: bool, batchnorm: bool, observers: bool) -> None:
        """Writes the modes into the graph.

        Momentum and epsilon are written, too: torchao's patterns put their own in place of the network's.
        """
        mode = (dropout, batchnorm, observers and not self.observers_frozen)
        if mode == self._mode:
            return
        rates = iter(self._dropout)
        changed = False
        for node in self.graph.graph.nodes:
            if _is(node, "batch_norm"):
                args = (*node.args[:5], batchnorm, *self._batchnorm[_weight_of(node)], *node.args[8:])
            elif _is(node, "dropout"):
                args = (node.args[0], next(rates), dropout)
            else:
                continue
            changed = changed or args != node.args
            node.args = args
        if changed:
            self.graph.recompile()
        for quantizer in self.weight_quantizers():
            quantizer.enable_observer(observers)
        for quantizer in self.activation_quantizers():
            quantizer.enable_observer(mode[2])
        self._mode = mode


def fake_quantize(network: nn.Module, float_layers: Sequence[str] = ()) -> None:
    """Puts fake quantizers into a network, in place, and records that.

    The ranges of the activations are unknown until :func:`calibrate`, or training, has seen images.

    Args:
        network: has a `backbone` and an `image_size`, as those of `create_network` have.
        float_layers: names of layers that stay in float.

    Raises:
        UserError: see :class:`FakeQuantGraph`; or the network is of another kind, has fake quantizers already, or a
            weight is not finite.
    """
    target: Any = network
    if not isinstance(getattr(target, "backbone", None), nn.Module) or not hasattr(target, "image_size"):
        raise UserError(
            f"{type(network).__name__} cannot be quantized: wrap it in compresslens.networks.PixelNetwork, "
            "which keeps normalization and backbone apart"
        )
    if quantized_graph(network) is not None:
        raise UserError("the network has fake quantizers already: start from the float network's checkpoint")
    broken = next((name for name, value in network.named_parameters() if not torch.isfinite(value).all()), None)
    if broken is not None:
        raise UserError(f"{broken} is not finite: such a network cannot be quantized")
    target.backbone = FakeQuantGraph(target.backbone, target.image_size, float_layers)
    record_change(network, {"kind": "fake_quantize", "float_layers": list(float_layers)})


def rebuild(network: nn.Module, change: Change) -> None:
    """Repeats a recorded :func:`fake_quantize`; weights and ranges come from the checkpoint."""
    fake_quantize(network, change["float_layers"])


def quantized_graph(network: nn.Module) -> FakeQuantGraph | None:
    """The network's part with fake quantizers, if it has one."""
    return next((module for module in network.modules() if isinstance(module, FakeQuantGraph)), None)


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the ranges of all activations to the mean, over the batches, of their least and greatest values.

    Batch normalization and dropout are as in evaluation; nothing is rounded meanwhile.

    Args:
        network: after :func:`fake_quantize`.
        batches: images N×3×S×S in [0, 1].

    Raises:
        UserError: there is no batch, or an activation is not finite.
    """
    graph = quantized_graph(network)
    if graph is None:
        raise UserError("the network has no fake quantizers to calibrate")
    observers = [quantizer.activation_post_process for quantizer in graph.activation_quantizers()]
    constants = [observer.averaging_constant for observer in observers]
    count = 0
    with observing(graph):
        for quantizer in (*graph.weight_quantizers(), *graph.activation_quantizers()):
            quantizer.disable_fake_quant()
        for observer in observers:
            observer.forget()
        try:
            for images in batches:
                count += 1
                for observer in observers:
                    observer.averaging_constant = 1 / count
                network(images)
        finally:
            for observer, constant in zip(observers, constants, strict=True):
                observer.averaging_constant = constant
            for quantizer in (*graph.weight_quantizers(), *graph.activation_quantizers()):
                quantizer.enable_fake_quant()
    if count == 0:
        raise UserError("calibration needs at least one batch of images")
    if not all(torch.isfinite(observer.max_val - observer.min_val).all() for observer in observers):
        raise UserError("an activation is not finite: the images are broken, or the weights far too large")


@contextmanager
def observing(graph: FakeQuantGraph) -> Iterator[None]:
    """Within the block, forward passes update the ranges of weights and activations while all else is in eval mode."""
    modes = [(module, module.training) for module in graph.modules()]
    frozen, switch = graph.observers_frozen, graph._switch
    graph.observers_frozen = False
    graph._switch = lambda *_: switch(False, False, True)  # type: ignore[method-assign]
    switch(False, False, True)
    try:
        yield
    finally:
        del graph._switch
        graph.observers_frozen = frozen
        for module, training in modes:
            module.training = training
        graph._switch(graph.training, graph.training and not graph.batchnorm_frozen, graph.training)


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


def _is(node: Any, operator: str) -> bool:
    """Whether a node calls the ATen operator of that name."""
    return node.op == "call_function" and str(node.target).startswith(f"aten.{operator}")


def _weight_of(node: Any) -> str:
    """Name of the parameter that a batch normalization scales with."""
    return str(node.args[1].target)


def _remove_drop_path(network: nn.Module) -> None:
    """Switches stochastic depth off: captured in training mode it would stay active for ever."""
    for module in network.modules():
        if type(module).__name__ in ("DropPath", "StochasticDepth"):
            for attribute in ("drop_prob", "p"):
                if hasattr(module, attribute):
                    setattr(module, attribute, 0.0)


@torch.no_grad()
def _replace_zero_gammas(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.weight is None or module.momentum is None or not module.track_running_stats:
                raise UserError(
                    "batch normalization without weights, momentum or running statistics cannot be quantized"
                )
            module.weight[module.weight == 0] = LEAST_GAMMA


def _name_sources(graph: Any) -> None:
    """Says of every operator which layer it stands for, as torchao's patterns want to know.

    They go by the module that an operator comes from. So without this timm's convolutions with TensorFlow's padding
    would quietly stay in float, and a ReLU that is called twice (torchvision's ResNets) would be refused.
    """
    for node in graph.graph.nodes:
        operator_name = str(node.target).removeprefix("aten.").split(".")[0].removesuffix("_")
        if node.op == "call_function" and operator_name in _SOURCES:
            node.meta["source_fn_stack"] = [(node.name, _SOURCES[operator_name])]


def _forget_batch_counts(graph: Any) -> None:
    """Takes the counting of batches out of the graph: it would go on in evaluation, and nothing reads it."""
    for node in list(graph.graph.nodes):
        if _is(node, "add_") and "num_batches_tracked" in str(getattr(node.args[0], "target", "")):
            graph.graph.erase_node(node)
    graph.recompile()


__all__ = [
    "FakeQuantGraph",
    "calibrate",
    "fake_quantize",
    "quantized_graph",
    "rebuild",
]
