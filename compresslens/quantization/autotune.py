"""Which layers must stay in float for the accuracy to hold: neural-compressor's accuracy-driven search."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.quantization.fake_quant import FakeQuantGraph, calibrate, fake_quantize
from compresslens.quantization.int8 import quiet

logger = logging.getLogger(__name__)


def choose_float_layers(
    network: nn.Module,
    images: Sequence[Tensor],
    accuracy: Callable[[nn.Module], float],
    tolerance: float,
    float_layers: Sequence[str] = (),
    trials: int = 6,
) -> list[str]:
    """The shortest of several lists of float layers with which post-training quantization keeps the accuracy.

    The layers whose rounding alone changes the logits most come first; neural-compressor's `autotune` tries 0, 1, 2, 4,
    ... of them. It returns its best trial even where none is good enough, so what it chose is measured again here.

    Args:
        network: float, with `backbone` and `image_size`; it stays as it is.
        images: calibration batches N×3×S×S in [0, 1].
        accuracy: of a network, in [0, 1]; greater is better.
        tolerance: greatest loss, relative to the float network's accuracy, in [0, 1).
        float_layers: stay in float in any case.
        trials: greatest number of lists tried.

    Raises:
        UserError: none of the lists keeps the accuracy, or there is none.
    """
    before = accuracy(copy.deepcopy(network).eval())
    if before == 0:
        raise UserError("the float network is never right: there is no accuracy that quantization could keep")
    ranking = [name for name in sensitivity(network, images, float_layers) if name not in float_layers]
    counts = [0, *(2**power for power in range(len(ranking)) if 2**power <= len(ranking))][:trials]
    candidates = [[*float_layers, *ranking[:count]] for count in counts]
    chosen = autotune(network, images, accuracy, tolerance, candidates)
    quantized = copy.deepcopy(network).eval()
    fake_quantize(quantized, chosen)
    calibrate(quantized, images)
    after = accuracy(quantized)
    logger.info("post-training quantization: accuracy %.4f -> %.4f, %d layers in float", before, after, len(chosen))
    if after < before * (1 - tolerance):
        raise UserError(
            f"quantization costs more than the tolerance of {tolerance:g}: accuracy {before:.4f} in float, {after:.4f} "
            f"with {len(chosen)} layers in float; raise tolerance or tuning_trials, or train"
        )
    return chosen


def autotune(
    network: Any,
    images: Sequence[Tensor],
    accuracy: Callable[[nn.Module], float],
    tolerance: float,
    candidates: list[list[str]],
) -> list[str]:
    """Runs neural-compressor's search; returns the list of float layers of its last trial, or of its best one."""
    with quiet():
        from neural_compressor.torch.export import export
        from neural_compressor.torch.quantization import StaticQuantConfig, TuningConfig
        from neural_compressor.torch.quantization import autotune as search

        configs = []
        for names in candidates:
            config = StaticQuantConfig()
            for name in names:
                config.set_local(name, StaticQuantConfig(w_dtype="fp32", act_dtype="fp32"))
            configs.append(config)
        whole = copy.deepcopy(network).eval()
        example = (images[0][:2],)
        shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        exported = export(whole.backbone, example_inputs=example, dynamic_shapes=shapes)
        results: list[float] = []

        def evaluate(graph: nn.Module) -> float:
            whole.backbone = graph
            results.append(accuracy(whole))
            return results[-1]

        def run(graph: nn.Module) -> None:
            for batch in images:
                graph(whole.normalize(batch))

        tuning = TuningConfig(config_set=configs, tolerable_loss=tolerance, max_trials=len(configs))
        search(exported, tuning, evaluate, run_fn=run, example_inputs=example)
    trials = results[1:]  # the first is the float network
    return candidates[max(range(len(trials)), key=lambda trial: trials[trial])]


@torch.no_grad()
def sensitivity(network: nn.Module, images: Sequence[Tensor], float_layers: Sequence[str] = ()) -> dict[str, float]:
    """Mean squared change of the logits when one layer alone is quantized, by layer, the greatest first."""
    quantized: Any = copy.deepcopy(network).eval()
    fake_quantize(quantized, float_layers)
    calibrate(quantized, images)
    graph: FakeQuantGraph = quantized.backbone
    everything: list[Any] = [*graph.weight_quantizers(), *graph.activation_quantizers()]
    for quantizer in everything:
        quantizer.disable_fake_quant()
    exact = quantized(images[0])
    errors = {}
    for layer, names in quantizers_by_layer(graph).items():
        used: list[Any] = [graph.graph.get_submodule(name) for name in names]
        for quantizer in used:
            quantizer.enable_fake_quant()
        errors[layer] = float((quantized(images[0]) - exact).double().square().mean())
        for quantizer in used:
            quantizer.disable_fake_quant()
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def quantizers_by_layer(graph: FakeQuantGraph) -> dict[str, list[str]]:
    """Names of the fake quantizers of each convolution's and linear layer's weight and input."""
    from torchao.quantization.pt2e import FakeQuantizeBase

    found = {}
    for node in graph.graph.graph.nodes:
        if not str(node.target).startswith(("aten.conv", "aten.linear")):
            continue
        names = []
        for argument in node.args[:2]:
            while argument.op == "call_function" and "aten.pad" in str(argument.target):
                argument = argument.args[0]
            is_quantizer = argument.op == "call_module" and isinstance(
                graph.graph.get_submodule(argument.target), FakeQuantizeBase
            )
            names += [argument.target] if is_quantizer else []
        if names:
            found[weight_name(node.args[1]).removesuffix(".weight")] = names
    return found


def weight_name(node: Any) -> str:
    """Name of the parameter of most dimensions that a node is computed from."""
    pending, names = [node], []
    while pending:
        current = pending.pop()
        if current.op == "get_attr" and str(current.target).endswith("weight"):
            names.append(str(current.target))
        pending += [] if current.op == "get_attr" else current.all_input_nodes
    # a convolution's weight is multiplied by that of its batch normalization, which comes from its own layer
    owner = node.graph.owning_module
    return max(names, key=lambda name: owner.get_parameter(name).ndim)
