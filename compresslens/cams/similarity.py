"""How alike two maps of the same image and class are.

All measures are 1 for equal maps, and symmetric. All are NaN where one of the maps is constant (all zero, say): it has
no structure that could be alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresslens.cams.shapes import check_alike

_C1, _C2 = 0.01**2, 0.03**2


def pearson_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Correlation of the pixels' values: the same for maps that are scaled or shifted.

    Args:
        maps: N×H×W.
        others: N×H×W, of the same images and classes.

    Returns:
        N float64 in [-1, 1]; NaN where a map is constant or contains NaN.

    Raises:
        ValueError: shapes that differ.
    """
    check_alike(maps, others)
    first, second = _centred(maps), _centred(others)
    product = (first * second).sum(1) / (first.square().sum(1).sqrt() * second.square().sum(1).sqrt())
    return _undefined_where_constant(product.clamp(-1, 1), maps, others)


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's correlation, of the pixels' ranks: the same for maps that are transformed monotonically.

    Arguments, result and errors as of :func:`pearson_correlation`.
    """
    check_alike(maps, others)
    correlation = pearson_correlation(*(_average_ranks(values.flatten(1))[:, None] for values in (maps, others)))
    undefined = maps.isnan().flatten(1).any(1) | others.isnan().flatten(1).any(1)  # sorting would place them
    return correlation.masked_fill(undefined, torch.nan)


def structural_similarity(maps: Tensor, others: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004, equation 13), averaged over the image.

    Gaussian window of 11×11 pixels and σ = 1.5, K = (0.01, 0.03), data range 1, borders reflected: as torchmetrics.

    Args:
        maps: N×H×W in [0, 1], at least 6×6 pixels.
        others: likewise, of the same images and classes.

    Returns:
        N float64 in [-1, 1]; NaN where a map is constant or contains NaN.

    Raises:
        ValueError: shapes that differ, or maps too small for the window.
    """
    check_alike(maps, others)
    if min(maps.shape[1:]) < 6:
        raise ValueError(f"maps of {tuple(maps.shape[1:])} pixels are too small for the window of 11×11")
    first, second = maps.double(), others.double()
    products = torch.stack([first, second, first.square(), second.square(), first * second])
    down, right = (_gaussian_window(side, maps.device) for side in maps.shape[1:])
    mean, mean2, square, square2, product = down @ products @ right.T
    luminance = (2 * mean * mean2 + _C1) / (mean.square() + mean2.square() + _C1)
    variances = square - mean.square() + square2 - mean2.square()
    structure = (2 * (product - mean * mean2) + _C2) / (variances + _C2)
    return _undefined_where_constant((luminance * structure).mean((1, 2)), maps, others)


def top_area_iou(maps: Tensor, others: Tensor, area: float = 0.2) -> Tensor:
    """Intersection over union of the highest pixels of both maps, a given share of the image each.

    Where equal values straddle the bound, each of them belongs to the highest in part, by as much as makes up the
    area: a map that is mostly zero must not get its place from the order in memory. Intersection and union are then
    sums of minima and maxima.

    Args:
        maps: N×H×W.
        others: N×H×W, of the same images and classes.
        area: share of the pixels, in (0, 1).

    Returns:
        N float64 in [0, 1]; NaN where a map is constant or contains NaN. Chance is area / (2 - area).

    Raises:
        ValueError: shapes that differ, or an area out of range.
    """
    check_alike(maps, others)
    if not 0 < area < 1:
        raise ValueError(f"area is {area}; it must lie between 0 and 1")
    size = min(max(round(area * maps.shape[1:].numel()), 1), maps.shape[1:].numel())
    first, second = _membership(maps.flatten(1), size), _membership(others.flatten(1), size)
    overlap = torch.minimum(first, second).sum(1) / torch.maximum(first, second).sum(1)
    return _undefined_where_constant(overlap, maps, others)


def _centred(maps: Tensor) -> Tensor:
    """N×P float64 of mean 0, scaled to a greatest magnitude of 1, so that squares of small values do not vanish."""
    values = maps.double().flatten(1)
    centred = values - values.mean(1, keepdim=True)
    return centred / centred.abs().amax(1, keepdim=True)


def _gaussian_window(side: int, device: torch.device) -> Tensor:
    """A side×side matrix that blurs a row of pixels, reflected at its ends."""
    offsets = torch.arange(-5, 6, device=device)
    weights = torch.exp(-offsets.double().square() / (2 * 1.5**2))
    places = (torch.arange(side, device=device)[:, None] + offsets).abs()
    places = torch.where(places < side, places, 2 * (side - 1) - places)
    blur = torch.zeros(side, side, dtype=torch.float64, device=device)
    return blur.scatter_add_(1, places, (weights / weights.sum()).expand(places.shape))


def _average_ranks(values: Tensor) -> Tensor:
    """N×P float64: rank of each value within its row; equal values share the mean of theirs."""
    ordered, order = values.sort(1)
    new = torch.ones_like(order)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = new.cumsum(1) - 1
    places = torch.arange(values.shape[1], device=values.device, dtype=torch.float64).expand(values.shape)
    means = torch.zeros(values.shape, dtype=torch.float64, device=values.device)
    means = means.scatter_reduce(1, group, places, "mean", include_self=False)
    return torch.empty_like(means).scatter_(1, order, means.gather(1, group))


def _membership(values: Tensor, size: int) -> Tensor:
    """N×P float64 in [0, 1], of sum `size`: how far each value belongs to the highest of its row."""
    bound = values.topk(size, 1).values[:, -1:]
    above, tied = (values > bound).double(), (values == bound).double()
    return above + tied * (size - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)


def _undefined_where_constant(scores: Tensor, maps: Tensor, others: Tensor) -> Tensor:
    # A range that is NaN is not greater than zero either.
    ranges = [values.flatten(1).amax(1) - values.flatten(1).amin(1) for values in (maps, others)]
    return scores.masked_fill(~((ranges[0] > 0) & (ranges[1] > 0)), torch.nan)
