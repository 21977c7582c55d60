"""Convolutions and linear layers that quantize their weights and inputs with learned steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresslens.errors import UserError
from compresslens.quantization.lsq_quantizer import InputQuantizer, WeightQuantizer

BITS = (2, 3, 4, 5, 6, 7, 8, 32)
"""Numbers of bits that can be asked for; 32 stands for no quantization."""


class QuantizedLayer(nn.Module):
    """What the quantized layers have in common.

    `weight` and `bias` stay the float parameters that are trained, under the names they had.

    Attributes:
        weight_quantizer, input_quantizer: None where nothing is quantized.
    """

    weight: Tensor
    weight_quantizer: WeightQuantizer | None
    input_quantizer: InputQuantizer | None

    def quantized_weight(self) -> Tensor:
        """The weights that the layer computes with."""
        return self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

    def quantized_input(self, value: Tensor) -> Tensor:
        """The inputs that the layer computes with."""
        return value if self.input_quantizer is None else self.input_quantizer(value)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """`nn.Conv2d` with learned steps."""

    def forward(self, input: Tensor) -> Tensor:
        """N×C×H×W as `nn.Conv2d`."""
        return self._conv_forward(self.quantized_input(input), self.quantized_weight(), self.bias)


class QuantizedConv2dSame(QuantizedConv2d):
    """`timm.layers.Conv2dSame` with learned steps: TensorFlow's padding, which depends on the size of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """N×C×H×W as `timm.layers.Conv2dSame`."""
        height, width = (
            _same_padding(size, kernel, stride, dilation)
            for size, kernel, stride, dilation in zip(
                input.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        padded = F.pad(self.quantized_input(input), (width // 2, width - width // 2, height // 2, height - height // 2))
        return self._conv_forward(padded, self.quantized_weight(), self.bias)


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """`nn.Linear` with learned steps."""

    def forward(self, input: Tensor) -> Tensor:
        """N×...×C as `nn.Linear`."""
        return F.linear(self.quantized_input(input), self.quantized_weight(), self.bias)


def quantizable(layer: nn.Module) -> bool:
    """Whether a layer is a convolution or a linear layer, of whatever kind."""
    return isinstance(layer, nn.Conv2d | nn.Linear)


def check_layer(layer: nn.Module, name: str) -> None:
    """Raises UserError unless `quantize_layer` knows how the layer computes.

    A layer that does more than to convolve or multiply (weight standardization) would not compute with weights on the
    grid of its steps.
    """
    if isinstance(layer, QuantizedLayer):
        raise UserError(f"layer '{name}' has learned steps already")
    if _quantized_type(layer) is None:
        raise UserError(
            f"layer '{name}' is a {type(layer).__name__}, which cannot have learned steps: keep it in float"
        )


def quantize_layer(layer: nn.Module, weight_bits: int, activation_bits: int, signed: bool, per_channel: bool) -> None:
    """Turns a layer into its quantized counterpart, in place, with steps of 1.

    It stays the same object with the same parameters, so hooks and references to it stay valid.

    Args:
        layer: one that `check_layer` let pass.
        weight_bits: one of `BITS`.
        activation_bits: likewise, of the layer's inputs.
        signed: whether inputs can be negative.
        per_channel: a step for each output channel of the weights; otherwise one for all.
    """
    changed: Any = layer
    weight: Tensor = changed.weight
    with torch.inference_mode(False):
        weights = WeightQuantizer(weight_bits, len(weight) if per_channel else 1) if weight_bits < 32 else None
        inputs = InputQuantizer(activation_bits, signed) if activation_bits < 32 else None
    changed.__class__ = _quantized_type(layer)
    for slot, quantizer in (("weight_quantizer", weights), ("input_quantizer", inputs)):
        if quantizer is not None:
            quantizer.to(weight.device, weight.dtype).train(layer.training)
        changed.register_module(slot, quantizer)


def check_bits(option: str, bits: int) -> None:
    """Raises UserError unless the number of bits is one of `BITS`."""
    if bits not in BITS:
        raise UserError(f"{option} is {bits}; it must be 2 to 8, or 32 to leave them in float")


def _quantized_type(layer: nn.Module) -> type[QuantizedLayer] | None:
    """By the exact class: a subclass may compute anything."""
    kind = type(layer)
    if kind is nn.Conv2d:
        return QuantizedConv2d
    if kind is nn.Linear:
        return QuantizedLinear
    from timm import layers  # only where a layer is of neither class: importing it takes seconds

    if kind is layers.Conv2dSame:
        return QuantizedConv2dSame
    return QuantizedLinear if kind is layers.Linear else None


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Rows or columns of zeros to add, so that the output has ceil(size / stride) of them."""
    return max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
