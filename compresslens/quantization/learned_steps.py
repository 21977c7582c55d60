"""Weights and activations of 2 to 8 bits, simulated, with learned step sizes: LSQ, Esser et al. 2020, arXiv:1902.08153.

The network computes in float with values on a grid; the parameters that are trained are the float weights, and the
width of each grid. It is for studying few bits: nothing runs faster. `packed_state` gives the bytes that the weights
would need.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.networks.changes import Change, record_change
from compresslens.networks.taps import classifier_name, find_layer, unwrap
from compresslens.quantization.lsq_calibration import Inputs, input_step, observe_inputs, weight_steps
from compresslens.quantization.lsq_layers import QuantizedLayer, check_bits, check_layer, quantizable, quantize_layer

KIND = "learned_steps"


def learn_steps(
    network: nn.Module,
    batches: Iterable[Tensor],
    weight_bits: int,
    activation_bits: int,
    *,
    edge_bits: int = 8,
    keep: Sequence[str] = (),
    per_channel: bool = True,
) -> None:
    """Quantizes the weights and inputs of all convolutions and linear layers, in place, with steps that are trained.

    Weights have signed codes. Inputs have a step per layer, and codes for negative values only where calibration saw
    some. The first convolution that runs and the classifier have `edge_bits` (section 2.3 of the paper). Batch
    normalization, biases, additions and pooling stay in float.

    Weights' steps start from the mean magnitude (the paper), inputs' steps from the least squared error on the
    calibration images: see `lsq_calibration`.

    The network is recorded to have changed, unless nothing is quantized. On an error it is as it was.

    Args:
        network: trained; takes images N×3×H×W in [0, 1].
        batches: of such images to calibrate on, run in eval mode.
        weight_bits: 2 to 8, or 32: weights stay in float, at the edges too.
        activation_bits: 2 to 8, or 32: inputs stay in float, at the edges too.
        edge_bits: for whatever is quantized of the first convolution and of the classifier: 2 to 8, or 32.
        keep: names of layers that stay in float; with all that is in them.
        per_channel: a weights' step for each output channel; otherwise one for each layer, as in the paper.

    Raises:
        UserError: a number of bits is impossible; a name in `keep` is unknown; there is nothing to quantize; a layer is
            of a kind that cannot be quantized, or did not run on the images; there are no images.
    """
    for option, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits), ("edge_bits", edge_bits)):
        check_bits(option, bits)
    kept = {module for name in keep for module in find_layer(network, name).modules()}
    if weight_bits == activation_bits == 32:
        return
    layers = {name: layer for name, layer in _layers(network).items() if layer not in kept}
    if not layers:
        raise UserError("there is no convolution or linear layer to quantize")
    for name, layer in layers.items():
        check_layer(layer, name)
    classifier = find_layer(network, classifier_name(network))
    everything = _layers(network)
    seen = observe_inputs(network, everything, batches)
    _check_all_ran(layers, seen)
    first = next((everything[name] for name in seen if isinstance(everything[name], nn.Conv2d)), None)

    settings: dict[str, dict[str, Any]] = {}
    for name, layer in layers.items():
        at_edge = layer is first or layer is classifier
        chosen = {
            "weight_bits": edge_bits if at_edge and weight_bits < 32 else weight_bits,
            "activation_bits": edge_bits if at_edge and activation_bits < 32 else activation_bits,
        }
        if min(chosen.values()) < 32:
            settings[name] = {**chosen, "signed": seen[name].signed}
    if not settings:
        return
    change = {"kind": KIND, "per_channel": per_channel, "layers": settings}
    rebuild(network, change)
    for name in settings:
        _start_steps(layers[name], seen[name])


def rebuild(network: nn.Module, change: Change) -> None:
    """Makes the same layers quantized as `learn_steps` did, in place, and records it; the values are yet to be loaded.

    Args:
        network: as it was when `learn_steps` was called.
        change: as it was recorded.

    Raises:
        UserError: the change does not fit the network; then nothing has been changed.
    """
    layers = {name: find_layer(network, name) for name in change["layers"]}
    for name, options in change["layers"].items():
        check_layer(layers[name], name)
        check_bits(f"weight_bits of layer '{name}'", options["weight_bits"])
        check_bits(f"activation_bits of layer '{name}'", options["activation_bits"])
    for name, options in change["layers"].items():
        quantize_layer(layers[name], **options, per_channel=change["per_channel"])
    record_change(network, change)


@torch.no_grad()
def _start_steps(layer: Any, inputs: Inputs) -> None:
    """Sets the steps of a quantized layer to what training starts from."""
    weights, activations = layer.weight_quantizer, layer.input_quantizer
    if weights is not None:
        weights.step.copy_(weight_steps(layer.weight, weights.bits, len(weights.step) == len(layer.weight)))
    if activations is not None:
        activations.step.fill_(input_step(torch.cat(inputs.samples), activations.bits, activations.signed))


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by the names that `find_layer` knows them by; each once."""
    found = {}
    for name, module in unwrap(network).named_modules():
        if quantizable(module):
            parts = [part for part in name.split(".") if part != "_orig_mod"]
            found[".".join(parts).removeprefix("backbone.")] = module
    return found


def _check_all_ran(layers: dict[str, nn.Module], seen: dict[str, Inputs]) -> None:
    """Raises UserError if there is a layer whose inputs are not known."""
    missing = [name for name in layers if name not in seen]
    if missing:
        raise UserError(f"layer '{missing[0]}' does not run as a layer of its own: keep it in float")


def quantized_layers(network: nn.Module) -> dict[str, QuantizedLayer]:
    """The layers with learned steps by their names."""
    return {name: layer for name, layer in _layers(network).items() if isinstance(layer, QuantizedLayer)}
