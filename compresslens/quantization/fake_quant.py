"""INT8 quantization-aware networks: torchao's PT2E graph in a module whose train and eval modes can be trusted.

torchao prepares a flat graph of ATen operators with fake quantizers in it (Jacob et al. 2018, arXiv:1712.05877:
per-channel symmetric int8 weights, per-tensor affine uint8 activations, batch normalization folded into the convolution
for the quantizer's eyes). Such a graph has no modes of its own: dropout, batch normalization and observers have them
written into the graph. :class:`FakeQuantGraph` owns the switch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.networks.changes import Change, record_change
from compresslens.networks.taps import classifier_name, find_layer
from compresslens.quantization.fold import write_epsilon
from compresslens.quantization.preparation import (
    calls,
    capture,
    forget_batch_counts,
    name_sources,
    prepare,
    remove_drop_path,
    replace_zero_gammas,
    scale_name,
    split_quantizers,
)


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
        remove_drop_path(original)
        replace_zero_gammas(original)
        self._batchnorm = {
            f"{name}.weight": (module.momentum, module.eps)
            for name, module in original.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        weight = next(original.parameters())
        exported = capture(original.train(), image_size, weight)
        forget_batch_counts(exported)
        name_sources(exported)
        self._dropout = [node.args[1] for node in exported.graph.nodes if calls(node, "dropout")]
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
            if calls(node, "batch_norm"):
                args = (*node.args[:5], batchnorm, *self._batchnorm[scale_name(node)], *node.args[8:])
            elif calls(node, "dropout"):
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


__all__ = [
    "FakeQuantGraph",
    "calibrate",
    "fake_quantize",
    "quantized_graph",
    "rebuild",
]
