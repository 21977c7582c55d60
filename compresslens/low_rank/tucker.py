"""A convolution as a small one between two 1×1 convolutions: Tucker-2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.low_rank.pieces import convolution_piece, fill, sequence, values
from compresslens.low_rank.uses import Use

SWEEPS = 3
"""Of higher-order orthogonal iteration; almost all of the gain over its start comes with the first."""


def spectra(layer: nn.Conv2d) -> list[Tensor]:
    """The singular values of the weight unfolded along its outputs and along its inputs, each descending, float64."""
    weight = _weight(layer)
    return [_left_vectors(_unfold(weight, mode))[1] for mode in (0, 1)]


def fit_ranks(layer: nn.Conv2d, ranks: Sequence[int]) -> list[int]:
    """The ranks (outputs, inputs) without what can be left out at no loss.

    A core of R_out × R_in × kh × kw has at most R_in·kh·kw independent outputs, and R_out·kh·kw independent inputs.
    """
    outputs, inputs = ranks
    elements = layer.weight[0, 0].numel()
    outputs = min(outputs, inputs * elements)
    return [outputs, min(inputs, outputs * elements)]


def macs(layer: nn.Conv2d, ranks: Sequence[int], use: Use) -> int:
    """Multiply-accumulate operations for one image."""
    (rank_out, rank_in), (outputs, inputs) = ranks, layer.weight.shape[:2]
    core = rank_out * rank_in * layer.weight[0, 0].numel()
    return use.inputs * inputs * rank_in + use.outputs * (core + outputs * rank_out)


def structure(layer: nn.Conv2d, ranks: Sequence[int]) -> nn.Sequential:
    """The pieces "reduce" (1×1, I to R_in channels), "core" (kh×kw, to R_out) and "expand" (1×1, to O), all zeros."""
    rank_out, rank_in = ranks
    return sequence(
        layer,
        reduce=convolution_piece(layer, layer.in_channels, rank_in),
        core=convolution_piece(layer, rank_in, rank_out, height=True, width=True),
        expand=convolution_piece(layer, rank_out, layer.out_channels, bias=layer.bias is not None),
    )


def decompose(layer: nn.Conv2d, ranks: Sequence[int]) -> nn.Sequential:
    """The layer in the form of Kim et al. 2016 (https://arxiv.org/abs/1511.06530, section 3.1).

    It starts from the truncated higher-order SVD, whose squared error is at most the sum of the squared singular values
    that are left out in both modes (De Lathauwer et al. 2000, "A multilinear singular value decomposition", property
    10); each sweep of higher-order orthogonal iteration can only lower the error.

    Raises:
        UserError: the kernel is 1×1.
    """
    rank_out, rank_in = fit_ranks(layer, ranks)
    weight = _weight(layer)
    basis_out = _left_vectors(_unfold(weight, 0))[0][:, :rank_out]
    basis_in = _left_vectors(_unfold(weight, 1))[0][:, :rank_in]
    for _ in range(SWEEPS):
        basis_out = _left_vectors(_unfold(_project(weight, 1, basis_in), 0))[0][:, :rank_out]
        basis_in = _left_vectors(_unfold(_project(weight, 0, basis_out), 1))[0][:, :rank_in]
    core = _project(_project(weight, 0, basis_out), 1, basis_in)
    pieces = structure(layer, [rank_out, rank_in])
    fill(pieces, [basis_in.T, core, basis_out], layer.bias)
    return pieces


def _weight(layer: nn.Conv2d) -> Tensor:
    if layer.weight[0, 0].numel() == 1:
        raise UserError("Tucker-2 is for kernels larger than 1×1; for 1×1 it is plain SVD")
    return values(layer)


def _unfold(tensor: Tensor, mode: int) -> Tensor:
    """The tensor as a matrix whose rows are the slices of that mode."""
    return tensor.movedim(mode, 0).flatten(1)


def _project(tensor: Tensor, mode: int, basis: Tensor) -> Tensor:
    """Replaces a mode of n slices by its r coordinates in an orthonormal basis n×r."""
    return torch.tensordot(basis, tensor, ([0], [mode])).movedim(0, mode)


def _left_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors in columns, and singular values, of a matrix; wide ones are first made square by QR."""
    if matrix.shape[1] > matrix.shape[0]:
        matrix = torch.linalg.qr(matrix.T, mode="r").R.T
    left, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
    return left, singular
