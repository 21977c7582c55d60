"""A convolution as a vertical one and a horizontal one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.low_rank.pieces import convolution_piece, fill, sequence, values
from compresslens.low_rank.uses import Use


def spectra(layer: nn.Conv2d) -> list[Tensor]:
    """The singular values of the (I·kh)×(O·kw) weight, descending: one float64 vector."""
    return [torch.linalg.svdvals(_matrix(layer))]


def fit_ranks(layer: nn.Conv2d, ranks: Sequence[int]) -> list[int]:
    """The ranks themselves: none is of use only with another."""
    return list(ranks)


def macs(layer: nn.Conv2d, ranks: Sequence[int], use: Use) -> int:
    """Multiply-accumulate operations for one image."""
    (rank,), (outputs, inputs, height, width) = ranks, layer.weight.shape
    return rank * (use.between * inputs * height + use.outputs * outputs * width)


def structure(layer: nn.Conv2d, ranks: Sequence[int]) -> nn.Sequential:
    """The pieces "vertical" (kh×1, I to R channels) and "horizontal" (1×kw, R to O), all zeros."""
    (rank,) = ranks
    return sequence(
        layer,
        vertical=convolution_piece(layer, layer.in_channels, rank, height=True),
        horizontal=convolution_piece(layer, rank, layer.out_channels, width=True, bias=layer.bias is not None),
    )


def decompose(layer: nn.Conv2d, ranks: Sequence[int]) -> nn.Sequential:
    """The layer in the form of Jaderberg et al. 2014 (https://arxiv.org/abs/1405.3866, section 2, scheme 2).

    The values are the global optimum for that rank (Tai et al. 2016, https://arxiv.org/abs/1511.06067, theorem 1): the
    squared error of the weight is the sum of the squared singular values that are left out.

    Raises:
        UserError: the kernel is 1×1.
    """
    (rank,), (outputs, inputs, height, width) = ranks, layer.weight.shape
    left, singular, right = torch.linalg.svd(_matrix(layer), full_matrices=False)
    roots = singular[:rank].sqrt()
    vertical = (left[:, :rank] * roots).T.reshape(rank, inputs, height, 1)
    horizontal = (roots[:, None] * right[:rank]).reshape(rank, outputs, 1, width).transpose(0, 1)
    pieces = structure(layer, ranks)
    fill(pieces, [vertical, horizontal], layer.bias)
    return pieces


def _matrix(layer: nn.Conv2d) -> Tensor:
    """The weight O×I×kh×kw as (I·kh)×(O·kw)."""
    outputs, inputs, height, width = layer.weight.shape
    if height * width == 1:
        raise UserError("spatial SVD is for kernels larger than 1×1, which have no two directions to separate")
    return values(layer).permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)
