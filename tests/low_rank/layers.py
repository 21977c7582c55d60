"""Layers for the tests of factorization, small ones of every kind."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from compresslens.low_rank.ranks import candidate
from compresslens.low_rank.selection import decomposition
from compresslens.low_rank.uses import Use, measure_uses


@torch.no_grad()
def convolution(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Conv2d:
    """A convolution with an O×I×kh×kw kernel whose singular values decay, as those of trained ones do."""
    outputs, inputs, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(inputs, outputs, (height, width), **options).to(dtype)
    kernel = torch.randn(shape, generator=generator, dtype=torch.float64)
    for dimension, size in enumerate(shape):
        rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        decay = torch.arange(1, size + 1, dtype=torch.float64) ** -0.7
        kernel = torch.tensordot(rotation * decay, kernel, ([1], [dimension])).movedim(0, dimension)
    layer.weight.copy_(kernel)
    if layer.bias is not None:
        layer.bias.copy_(torch.randn(outputs, generator=generator))
    return layer


def image(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def full_ranks(layer: nn.Module, method: str) -> list[int]:
    """The ranks at which nothing is left out."""
    return candidate(layer, decomposition(method), Use(1, 1, 1)).ranks_at(1.0)


def use_of(network: nn.Module, layer: nn.Module, image_size: int) -> Use:
    return measure_uses(network, image_size)[0][layer]


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Strides, paddings, dilations and biases of all kinds, for kernels up to 4×4 on maps of 8×9."""

    def pair(least: int, most: int) -> tuple[int, int]:
        return draw(st.integers(least, most)), draw(st.integers(least, most))

    chosen: dict[str, Any] = {"dilation": pair(1, 2), "bias": draw(st.booleans())}
    chosen["padding"] = draw(st.sampled_from(["same", "valid", "numbers"]))
    if chosen["padding"] == "numbers":
        chosen["padding"] = pair(0, 3)
    if chosen["padding"] != "same":
        chosen["stride"] = pair(1, 3)
    chosen["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    return chosen
