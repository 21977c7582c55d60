"""A convolution as a sum of products of four vectors: CP, also known as PARAFAC."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.low_rank.pieces import convolution_piece, fill, sequence, values
from compresslens.low_rank.uses import Use

SWEEPS = 20
"""Most sweeps of alternating least squares."""

LEAST_GAIN = 1e-3
"""The sweeps end when one lowers the relative error by less than this share of it."""

RIDGE = 1e-3
"""Pull towards the factor of the sweep before, relative to the mean squared length of the terms."""

EXACT = 1e-7
"""Relative error from which on the sweeps could only add rounding errors."""

Factors = list[Tensor]
"""O×R, I×R, kh×R and kw×R: the weight is the sum over R of the outer products of their columns."""


def spectra(layer: nn.Conv2d) -> list[Tensor]:
    """The lengths of the orthogonal terms that the iteration starts from, descending: one float64 vector.

    Unlike its matrices a tensor has no singular values. These take their place: their squares add up to the squared
    norm of the weight, and R terms keep at least the share that the R largest have in that.
    """
    lengths, _ = _terms(_weight(layer), None)
    return [lengths]


def fit_ranks(layer: nn.Conv2d, ranks: Sequence[int]) -> list[int]:
    """The ranks themselves: none is of use only with another."""
    return list(ranks)


def macs(layer: nn.Conv2d, ranks: Sequence[int], use: Use) -> int:
    """Multiply-accumulate operations for one image."""
    (rank,), (outputs, inputs, height, width) = ranks, layer.weight.shape
    return rank * (use.inputs * inputs + use.between * height + use.outputs * (width + outputs))


def structure(layer: nn.Conv2d, ranks: Sequence[int]) -> nn.Sequential:
    """The pieces "reduce" (1×1, I to R), "vertical", "horizontal" (both depthwise) and "expand" (R to O), all zeros."""
    (rank,) = ranks
    return sequence(
        layer,
        reduce=convolution_piece(layer, layer.in_channels, rank),
        vertical=convolution_piece(layer, rank, rank, height=True, groups=rank),
        horizontal=convolution_piece(layer, rank, rank, width=True, groups=rank),
        expand=convolution_piece(layer, rank, layer.out_channels, bias=layer.bias is not None),
    )


def decompose(layer: nn.Conv2d, ranks: Sequence[int]) -> nn.Sequential:
    """The layer in the form of Lebedev et al. 2015 (https://arxiv.org/abs/1412.6553, section 3.2).

    The factors come from alternating least squares. The start is not random but the R largest of a set of orthogonal
    terms (see :func:`spectra`), and each step is pulled towards the one before (Navasca et al. 2008, "Swamp reducing
    technique for tensor decomposition"), which keeps it solvable where terms are nearly parallel; so the error never
    rises, from that of the start on.

    Raises:
        UserError: the kernel is 1×1.
    """
    (rank,) = ranks
    weight = _weight(layer)
    lengths, factors = _terms(weight, rank)
    outputs, inputs, height, width = _alternate(weight, factors, float(lengths[rank:].norm()))
    pieces = structure(layer, ranks)
    fill(pieces, [inputs.T, height.T, width.T, outputs], layer.bias)
    return pieces


def _weight(layer: nn.Conv2d) -> Tensor:
    if layer.weight[0, 0].numel() == 1:
        raise UserError("CP is for kernels larger than 1×1; for 1×1 it is plain SVD")
    return values(layer)


def _terms(weight: Tensor, rank: int | None) -> tuple[Tensor, Factors]:
    """Lengths of all orthogonal terms, descending, and the factors of the `rank` longest (None: of none).

    The kernels are written in orthonormal bases of columns and rows (left singular vectors of the two spatial
    unfoldings, which gather most of the norm in few places); the O×I slices at each of the kh·kw places then have
    singular value decompositions. Each singular value with its vectors is a term, and all terms are orthogonal.
    """
    outputs, inputs, height, width = weight.shape
    columns, rows = _basis(weight, 2), _basis(weight, 3)
    slices = torch.einsum("oiyx,ya,xb->aboi", weight, columns, rows).reshape(height * width, outputs, inputs)
    if rank is None:
        return torch.linalg.svdvals(slices).flatten().sort(descending=True, stable=True)[0], []
    left, singular, right = torch.linalg.svd(slices, full_matrices=False)
    lengths, order = singular.flatten().sort(descending=True, stable=True)
    place, number = order[:rank] // singular.shape[1], order[:rank] % singular.shape[1]
    factors = [left[place, :, number].T, right[place, number].T, columns[:, place // width], rows[:, place % width]]
    return lengths, [factor * lengths[:rank] ** 0.25 for factor in factors]


def _basis(weight: Tensor, mode: int) -> Tensor:
    """Left singular vectors of the weight unfolded along a mode."""
    unfolded = weight.movedim(mode, 0).flatten(1)
    return torch.linalg.svd(unfolded @ unfolded.T)[0]


def _alternate(weight: Tensor, factors: Factors, error: float) -> Factors:
    """Sweeps of regularized alternating least squares over the four factors.

    Args:
        weight: O×I×kh×kw.
        factors: to start from.
        error: norm of the difference between the weight and the sum of their terms.
    """
    norm = float(weight.norm())
    for _ in range(SWEEPS):
        if error <= EXACT * norm:
            break
        outputs, inputs, height, width = factors
        terms = torch.einsum("ir,yr,xr->iyxr", inputs, height, width).flatten(0, 2)
        outputs = _step(weight.flatten(1) @ terms, outputs, [inputs, height, width])
        # the other steps work on the weight times the outputs' factor
        contracted = torch.einsum("oiyx,or->iyxr", weight, outputs)
        inputs = _step(torch.einsum("iyxr,yr,xr->ir", contracted, height, width), inputs, [outputs, height, width])
        contracted = torch.einsum("iyxr,ir->yxr", contracted, inputs)
        height = _step(torch.einsum("yxr,xr->yr", contracted, width), height, [outputs, inputs, width])
        product = torch.einsum("yxr,yr->xr", contracted, height)
        width = _step(product, width, [outputs, inputs, height])
        factors = _balance([outputs, inputs, height, width])
        squares = norm**2 - 2 * float((product * width).sum()) + float(_gram(factors).sum())
        before, error = error, max(squares, 0.0) ** 0.5
        if before - error < LEAST_GAIN * before:
            break
    return factors


def _step(product: Tensor, factor: Tensor, others: Factors) -> Tensor:
    """The factor that minimizes the squared error plus the ridge times its squared distance from the present one.

    Args:
        product: n×R, the unfolded weight times the Khatri-Rao product of the other factors.
        factor: n×R, the present one.
        others: the other three.
    """
    gram = _gram(others)
    ridge = RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
    triangle = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
    # as a correction: what is exact already stays so
    return factor + torch.cholesky_solve((product - factor @ gram).T, triangle).T


def _balance(factors: Factors) -> Factors:
    """The same terms with columns of equal length in all factors, so that the ridge means the same in each."""
    lengths = torch.stack([factor.norm(dim=0) for factor in factors])
    common = lengths.prod(0) ** (1 / len(factors))
    return [factor * common / length.clamp(min=1e-300) for factor, length in zip(factors, lengths, strict=True)]


def _gram(factors: Factors) -> Tensor:
    """R×R inner products of the terms that are the outer products of the factors' columns."""
    return torch.stack([factor.T @ factor for factor in factors]).prod(0)
