"""Quantizers whose step size is a parameter: LSQ, Esser et al. 2020, arXiv:1902.08153."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_STEP = 1e-8
"""No step is smaller, whatever training does to the parameter."""


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code, (-Q_N, Q_P) in the paper: -2^(b-1) and 2^(b-1) - 1, or 0 and 2^b - 1."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def step_sizes(step: Tensor) -> Tensor:
    """Positive steps for the values of a parameter: their magnitude, at least `SMALLEST_STEP`.

    An optimizer can carry a small parameter past zero. By its magnitude it comes out on the other side as a small step.
    """
    return step.abs().clamp_min(SMALLEST_STEP)


class _Quantize(torch.autograd.Function):
    """round(clip(v / s, low, high)) · s (equations 1 and 2), with the gradients of equations 3 and 5.

    The gradient of the step skips the lower bound of `step_sizes`: a step that lies there can grow again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, step: Tensor, low: int, high: int, slope_scale: float) -> Tensor:
        size = step_sizes(step)
        return (value / size).clamp_(low, high).round_().mul_(size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, step, ctx.low, ctx.high, ctx.slope_scale = inputs
        ctx.save_for_backward(value, step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        value, step = ctx.saved_tensors
        clipped = (value / step_sizes(step)).clamp_(ctx.low, ctx.high)
        # The gradient where low < v / s < high, else 0. In one pass; torch.clamp would let it through at the bounds.
        inside = torch.ops.aten.hardtanh_backward(gradient, clipped, ctx.low, ctx.high)
        slope = None
        if ctx.needs_input_grad[1]:
            # Inside the range round(v/s) - v/s, outside the bound.
            slope = (gradient * clipped.round() - inside * clipped).sum_to_size(step.shape)
            slope = slope * torch.where(step < 0, -1.0, 1.0) * ctx.slope_scale  # the step is the magnitude
        return inside if ctx.needs_input_grad[0] else None, slope, None, None, None


class StepQuantizer(nn.Module):
    """What the quantizers of weights and of inputs have in common.

    Zero is always a code, so exact zeros stay exact zeros. Half-way values go to the even code.

    Args:
        bits: 2 to 8.
        signed: whether there are codes for negative values.
        steps: how many steps there are, of which each belongs to an equal share of the values.

    Attributes:
        step: parameter (steps); its magnitude is the step, see `step_sizes`.
        low, high: smallest and largest code.
    """

    def __init__(self, bits: int, signed: bool, steps: int) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.low, self.high = code_range(bits, signed)
        self.step = nn.Parameter(torch.ones(steps))

    def quantize(self, value: Tensor, step: Tensor, count: int) -> Tensor:
        """Rounds values to multiples of the step within the range of codes.

        Computed in float32 at least, whatever autocast says, and returned in the values' own type.

        Args:
            value: any shape and floating-point type.
            step: `self.step`, shaped so that it broadcasts against the values.
            count: N of the scale 1/sqrt(N · Q_P) of the step's gradient (section 2.2).
        """
        dtype = torch.promote_types(value.dtype, torch.float32)
        scale = 1 / math.sqrt(max(count, 1) * self.high)
        return _Quantize.apply(value.to(dtype), step.to(dtype), self.low, self.high, scale).to(value.dtype)

    def extra_repr(self) -> str:
        return f"{self.bits} bits, {self.low}..{self.high}, steps={len(self.step)}"


class WeightQuantizer(StepQuantizer):
    """Signed codes; one step for each output channel, or one for the layer.

    N of the gradient's scale is the number of weights that share a step.

    Args:
        bits: 2 to 8.
        channels: number of output channels, or 1 for a single step.
    """

    def __init__(self, bits: int, channels: int) -> None:
        super().__init__(bits, True, channels)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantized weights, C×... as given."""
        return self.quantize(weight, self.step_per_row(weight.ndim), weight.numel() // len(self.step))

    def codes(self, weight: Tensor) -> Tensor:
        """Integer codes (int16) of the weights, in the shape of the weights."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        size = step_sizes(self.step_per_row(weight.ndim).detach().to(dtype))
        return (weight.detach().to(dtype) / size).clamp_(self.low, self.high).round_().to(torch.int16)

    def step_per_row(self, ndim: int) -> Tensor:
        """The step parameter as C×1×1×1, so that it broadcasts against weights of `ndim` dimensions."""
        return self.step.view(-1, *[1] * (ndim - 1))


class InputQuantizer(StepQuantizer):
    """One step for all inputs of a layer, N×...

    N of the gradient's scale is the number of values of one image, so that it does not depend on the batch size; the
    loss is a mean over the batch.

    Args:
        bits: 2 to 8.
        signed: whether inputs can be negative.
    """

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed, 1)

    def forward(self, value: Tensor) -> Tensor:
        """Quantized inputs, N×... as given."""
        return self.quantize(value, self.step, math.prod(value.shape[1:]))
