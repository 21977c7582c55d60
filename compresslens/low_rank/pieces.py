"""The layers that a factorized layer consists of, before they have any values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def convolution_piece(
    layer: nn.Conv2d,
    in_channels: int,
    out_channels: int,
    *,
    height: bool = False,
    width: bool = False,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """A convolution, all zeros, that does the vertical or horizontal part of another one, both, or neither (1×1).

    Kernel size, stride, padding and dilation are the layer's in the directions that the piece works in, and 1, 1, 0 and
    1 in the others. All kinds of padding work on rows and columns separately, and none of the pieces but the last has a
    bias, so padding between the pieces equals padding in front of them.

    Args:
        layer: the one to be replaced; timm's `Conv2dSame` pads by the size of its input in each direction.
        in_channels: of the piece.
        out_channels: of the piece.
        height: whether the piece works vertically.
        width: whether the piece works horizontally.
        groups: of the piece.
        bias: whether the piece brings the layer's bias.
    """
    axes = (height, width)
    kernel, stride, dilation = (_where(axes, values, 1) for values in (layer.kernel_size, layer.stride, layer.dilation))
    padding = layer.padding if isinstance(layer.padding, str) else _where(axes, layer.padding, 0)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if layer.padding_mode != "zeros":
        options["padding_mode"] = layer.padding_mode
    kind = type(layer) if height or width else nn.Conv2d
    with torch.device("meta"):  # so that no random numbers are drawn
        piece = kind(in_channels, out_channels, kernel, bias=bias, **options)
    return _zeros(piece, layer)


def linear_piece(layer: nn.Linear, in_features: int, out_features: int, bias: bool = False) -> nn.Linear:
    """A linear layer, all zeros, with the device and type of another one."""
    with torch.device("meta"):
        piece = nn.Linear(in_features, out_features, bias)
    return _zeros(piece, layer)


def sequence(layer: nn.Module, **pieces: nn.Module) -> nn.Sequential:
    """The pieces by name, one after the other, in the layer's mode (training or not)."""
    return nn.Sequential(OrderedDict(pieces)).train(layer.training)


@torch.no_grad()
def fill(pieces: nn.Sequential, weights: Sequence[Tensor], bias: Tensor | None) -> None:
    """Sets the weights of the pieces, in any shape of as many values, and the bias of the last."""
    for piece, weight in zip(pieces, weights, strict=True):
        own: Any = piece.weight
        own.copy_(weight.reshape(own.shape))
    if bias is not None:
        last: Any = pieces[-1]
        last.bias.copy_(bias)


def values(layer: nn.Module) -> Tensor:
    """The weight in float64 on the CPU: other devices may lack the type, and differ in the last bits."""
    weight: Any = layer.weight
    return weight.detach().to("cpu", torch.float64)


def _where(axes: tuple[bool, bool], values: Sequence[int], otherwise: int) -> tuple[int, int]:
    return (values[0] if axes[0] else otherwise, values[1] if axes[1] else otherwise)


@torch.no_grad()
def _zeros(piece: Any, layer: Any) -> Any:
    weight = layer.weight
    piece = piece.to_empty(device=weight.device).to(weight.dtype)
    piece.weight.zero_().requires_grad_(weight.requires_grad)
    if piece.bias is not None:
        piece.bias.zero_().requires_grad_(layer.bias.requires_grad)
    return piece
