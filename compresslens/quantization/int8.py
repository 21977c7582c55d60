"""The INT8 network that a fake-quantized one stands for, converted by neural-compressor."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.quantization.fake_quant import FakeQuantGraph, quantized_graph
from compresslens.quantization.fold import fold_batchnorm


class Int8Graph(nn.Module):
    """A converted backbone: weights are stored as int8, activations are rounded to uint8 where INT8 kernels take over.

    It is for inference: rounding has no gradient, and there is no training mode.
    """

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×C of normalized images N×3×S×S."""
        return self.graph(images)

    def train(self, mode: bool = True) -> Int8Graph:
        """Does nothing but keep all flags in eval mode (the graph's own `train` is forbidden by torchao)."""
        for module in self.modules():
            module.training = False
        return self


def deployable(network: nn.Module) -> nn.Module:
    """What is to be exported: the network itself if it is float, else its INT8 form. The argument stays as it is.

    Raises:
        UserError: the network's ranges were never calibrated.
    """
    if quantized_graph(network) is None:
        return network
    return convert(network)


def convert(network: nn.Module) -> nn.Module:
    """A copy of a fake-quantized network with the backbone in INT8.

    neural-compressor converts; torchao folds rounding into the stored weights, which neural-compressor leaves in
    float, and what no operator reads any more is deleted.

    Args:
        network: after `compresslens.quantization.fake_quantize` and `calibrate` or training.

    Raises:
        UserError: it has no fake quantizers, or its ranges were never calibrated.
    """
    if quantized_graph(network) is None:
        raise UserError("the network has no fake quantizers: there is nothing to convert to INT8")
    converted: Any = copy.deepcopy(network).eval().requires_grad_(False)
    backbone: FakeQuantGraph = converted.backbone
    check_calibrated(backbone)
    backbone._switch(False, False, False)
    graph: Any = backbone.graph
    fold_batchnorm(graph)
    example = (torch.zeros(2, 3, converted.image_size, converted.image_size),)
    with quiet(), torch.no_grad():
        from neural_compressor.torch.quantization import StaticQuantConfig
        from neural_compressor.torch.quantization import convert as convert_prepared

        # what neural-compressor's own `prepare` leaves behind
        graph.is_prepared, graph.quant_config = True, StaticQuantConfig()
        graph.example_inputs, graph.dynamic_shapes = example, None
        graph = fold(convert_prepared(graph))
    converted.backbone = Int8Graph(graph)
    return converted


def check_calibrated(backbone: FakeQuantGraph) -> None:
    """Raises UserError if the range of an activation is not known."""
    for quantizer in backbone.activation_quantizers():
        if not torch.isfinite(quantizer.activation_post_process.max_val).all():
            raise UserError("the ranges of the activations are unknown: calibrate or train the network first")


def fold(graph: Any) -> Any:
    """Stores the weights of a converted graph as int8, in place, and deletes the float ones."""
    from torchao.quantization.pt2e.constant_fold import constant_fold
    from torchao.quantization.pt2e.quantize_pt2e import _quant_node_constraint

    constant_fold(graph, _quant_node_constraint)
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    called = tuple(f"{node.target}." for node in graph.graph.nodes if node.op == "call_module")
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in read and not (called and name.startswith(called)):
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)
    return graph


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps neural-compressor from reporting each of its steps on the console."""
    # not by its logger's level: importing it sets that anew
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
