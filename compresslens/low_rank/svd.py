"""Plain singular value decomposition of 1×1 convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.low_rank.pieces import convolution_piece, fill, linear_piece, sequence, values
from compresslens.low_rank.uses import Use


def spectra(layer: nn.Conv2d | nn.Linear) -> list[Tensor]:
    """The singular values of the O×I weight, descending: one float64 vector of min(O, I) values."""
    return [torch.linalg.svdvals(_matrix(layer))]


def fit_ranks(layer: nn.Conv2d | nn.Linear, ranks: Sequence[int]) -> list[int]:
    """The ranks themselves: none is of use only with another."""
    return list(ranks)


def macs(layer: nn.Conv2d | nn.Linear, ranks: Sequence[int], use: Use) -> int:
    """Multiply-accumulate operations for one image."""
    (rank,), (outputs, inputs) = ranks, layer.weight.shape[:2]
    return use.outputs * rank * (inputs + outputs)


def structure(layer: nn.Conv2d | nn.Linear, ranks: Sequence[int]) -> nn.Sequential:
    """The pieces "reduce" (I to R, with the layer's stride and padding) and "expand" (R to O), all zeros."""
    (rank,), (outputs, inputs), bias = ranks, layer.weight.shape[:2], layer.bias is not None
    if isinstance(layer, nn.Linear):
        reduce: nn.Module = linear_piece(layer, inputs, rank)
        return sequence(layer, reduce=reduce, expand=linear_piece(layer, rank, outputs, bias))
    reduce = convolution_piece(layer, inputs, rank, height=True, width=True)
    return sequence(layer, reduce=reduce, expand=convolution_piece(layer, rank, outputs, bias=bias))


def decompose(layer: nn.Conv2d | nn.Linear, ranks: Sequence[int]) -> nn.Sequential:
    """The layer by the best approximation of that rank (Eckart & Young 1936).

    The squared error of the weight is the sum of the squared singular values that are left out. Each of those kept is
    shared evenly between the two pieces.

    Raises:
        UserError: the kernel is larger than 1×1.
    """
    (rank,) = ranks
    left, singular, right = torch.linalg.svd(_matrix(layer), full_matrices=False)
    roots = singular[:rank].sqrt()
    pieces = structure(layer, ranks)
    fill(pieces, [roots[:, None] * right[:rank], left[:, :rank] * roots], layer.bias)
    return pieces


def _matrix(layer: nn.Conv2d | nn.Linear) -> Tensor:
    if layer.weight[0, 0].numel() > 1:
        height, width = layer.weight.shape[2:]
        raise UserError(f"plain SVD is for 1×1 kernels and linear layers, not for {height}×{width} kernels")
    return values(layer).flatten(1)
