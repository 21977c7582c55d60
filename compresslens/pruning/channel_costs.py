"""What a network costs once channels are gone, without removing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

Side = Literal["inputs", "outputs", "both"]
NORMALIZATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass
class LayerCost:
    """Parameters and multiply-accumulates of one layer as a function of its widths.

    Attributes:
        inputs: channels that come in; not used where a layer treats every channel by itself.
        outputs: channels that go out.
        per_pair: weights for each pair of input and output channel (kernel elements / groups).
        per_output: parameters for each output channel by itself.
        uses: multiply-accumulates that one weight takes part in for one image.
        depthwise: each channel by itself: depthwise convolutions and normalizations.
    """

    inputs: int
    outputs: int
    per_pair: float
    per_output: float
    uses: int = 0
    depthwise: bool = False

    def parameters(self) -> float:
        """Number of parameters."""
        return self._weights() + self.outputs * self.per_output

    def macs(self) -> float:
        """Multiply-accumulates for one image, of the weights that work on pairs of channels, and depthwise kernels."""
        return self._weights() * self.uses

    def narrow(self, side: Side, channels: int) -> None:
        """Takes channels away (or gives them back if negative)."""
        if side != "outputs":
            self.inputs -= channels
        if side != "inputs":
            self.outputs -= channels

    def _weights(self) -> float:
        return self.outputs * self.per_pair * (1 if self.depthwise else self.inputs)


def layer_cost(layer: nn.Module | nn.Parameter, uses: int, dim: int = 0) -> LayerCost | None:
    """The cost of a convolution, linear layer, normalization or bare parameter; None for any other.

    Args:
        layer: from a network, or a parameter that belongs to none of these layers.
        uses: from `layers.uses_per_weight`.
        dim: the dimension of a bare parameter that channels are taken from.
    """
    if isinstance(layer, nn.Parameter):
        return LayerCost(layer.shape[dim], layer.shape[dim], 0, layer.numel() / layer.shape[dim], depthwise=True)
    if isinstance(layer, nn.Conv2d):
        bias, kernel = int(layer.bias is not None), layer.weight[0, 0].numel()
        if is_depthwise(layer):
            return LayerCost(layer.in_channels, layer.out_channels, kernel, bias, uses, depthwise=True)
        return LayerCost(layer.in_channels, layer.out_channels, kernel / layer.groups, bias, uses)
    if isinstance(layer, nn.Linear):
        return LayerCost(layer.in_features, layer.out_features, 1, int(layer.bias is not None), uses)
    if isinstance(layer, NORMALIZATIONS):
        features = _features(layer)
        vectors = sum(parameter.numel() for parameter in layer.parameters())
        return LayerCost(features, features, 0, vectors / features, depthwise=True)
    return None


def _features(layer: nn.Module) -> int:
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1]
    return layer.num_channels if isinstance(layer, nn.GroupNorm) else cast(int, layer.num_features)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one group per channel (as torch-pruning sees it)."""
    return isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1
