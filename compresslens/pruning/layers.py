"""Which layers have weights that can be pruned, and how often these are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.networks.taps import classifier_name, find_layer, unwrap
from compresslens.pruning.untouched import left_as_found

Layers = dict[str, nn.Conv2d | nn.Linear]


def weight_layers(network: nn.Module) -> Layers:
    """All `Conv2d` and `Linear` layers by their dotted names; of those that share a weight, the first."""
    layers: Layers = {}
    seen: set[int] = set()
    for name, module in unwrap(network).named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            layers[name] = module
    return layers


def kept_modules(network: nn.Module, keep: Iterable[str] = (), keep_first_and_last: bool = True) -> set[nn.Module]:
    """The layers that are not to be pruned, with all that is inside of them.

    Args:
        network: a classifier.
        keep: dotted names of layers or blocks, looked up in `network.backbone` first, then in `network`.
        keep_first_and_last: keep the first convolution and the final classifier, too.

    Raises:
        UserError: there is no layer of such a name; the nearest ones are given.
    """
    kept = [find_layer(network, name) for name in keep]
    if keep_first_and_last:
        convolutions = [layer for layer in weight_layers(network).values() if isinstance(layer, nn.Conv2d)]
        kept += [*convolutions[:1], find_layer(network, classifier_name(network))]
    return {module for layer in kept for module in layer.modules()}


def prunable_layers(network: nn.Module, keep: Iterable[str] = (), keep_first_and_last: bool = True) -> Layers:
    """The layers of :func:`weight_layers` without those of :func:`kept_modules`."""
    kept = kept_modules(network, keep, keep_first_and_last)
    return {name: layer for name, layer in weight_layers(network).items() if layer not in kept}


def uses_per_weight(network: nn.Module, image_size: int) -> dict[nn.Module, int]:
    """How many multiply-accumulates each single weight of a layer takes part in for one image.

    That is the number of positions of its output (height x width; 1 for a linear layer on a vector), summed over the
    times it runs. Layers that do not run are left out.

    Args:
        network: takes images 1x3xSxS; left as it was.
        image_size: S.
    """
    uses: dict[nn.Module, int] = {}

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        channels = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
        uses[module] = uses.get(module, 0) + output.numel() // channels

    handles = [layer.register_forward_hook(count) for layer in weight_layers(network).values()]
    try:
        with left_as_found(network), torch.no_grad():
            network(example_image(network, image_size))
    finally:
        for handle in handles:
            handle.remove()
    return uses


def example_image(network: nn.Module, image_size: int) -> Tensor:
    """A grey image 1x3xSxS of the network's device and type."""
    like = next(network.parameters(), torch.empty(()))
    return torch.full((1, 3, image_size, image_size), 0.5, device=like.device, dtype=like.dtype)


def weights_of(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights of layers, by the same names."""
    return {name: layer.get_parameter("weight") for name, layer in layers.items()}
