"""Whether a map lies on the object, where masks of the objects are known."""

from __future__ import annotations

import torch
from torch import Tensor

from compresslens.cams.shapes import any_inside, check_masks, constant


def pointing_game(maps: Tensor, masks: Tensor, tolerance: int = 0) -> Tensor:
    """Whether the maximum of a map lies within the mask (Zhang et al. 2018, section 4.2).

    A maximum that several pixels share counts if one of them lies within, as in Quantus: upsampling spreads a maximum
    at the border of a small map over many pixels. A constant map (all zero, say) points nowhere; it scores what a pixel
    drawn at random would, the share of pixels that count as hits.

    Args:
        maps: N×H×W.
        masks: N×H×W bool, where the object is.
        tolerance: a maximum this many pixels (Euclidean) beside the mask still counts; the paper has 15 at about 224
            pixels.

    Returns:
        N float64: 1 or 0 (or the share, of a constant map); NaN where the mask is empty or the map contains NaN.

    Raises:
        ValueError: masks not bool or not of the maps' size, or a negative tolerance.
    """
    check_masks(maps, masks)
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}; it must be at least 0")
    hits = (_dilated(masks, tolerance) if tolerance and len(masks) else masks).flatten(1)
    values = maps.flatten(1)
    peaks = values.amax(1, keepdim=True)
    scores = any_inside((values >= peaks) & hits).double()
    blank = constant(maps)
    scores[blank] = hits[blank].double().mean(1)
    scores[peaks[:, 0].isnan() | ~any_inside(masks)] = torch.nan
    return scores


def energy_in_mask(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of a map's energy within the mask (Wang et al. 2020, section 4.3): a sum over pixels, where positive.

    On maps without negative values it is Quantus' relevance mass accuracy. Only a map without any energy differs: like
    a uniform one it tells nothing, so it scores the same, `mask_area`. (NaN would have the caller leave out just the
    images at which an explanation fails.)

    Args:
        maps: N×H×W; negative values count as zero.
        masks: N×H×W bool, where the object is.

    Returns:
        N float64 in [0, 1]; NaN where the mask is empty or the map contains NaN. Chance is `mask_area`.

    Raises:
        ValueError: masks not bool or not of the maps' size.
    """
    check_masks(maps, masks)
    energy = maps.to(torch.promote_types(maps.dtype, torch.float32)).relu()
    # Both sums add in the same order, and rounding is monotone: the part never exceeds the whole.
    within, total = (energy * masks.float()).sum((1, 2)).double(), energy.sum((1, 2)).double()
    shares = torch.where(total == 0, mask_area(masks), within / total)
    shares[~any_inside(masks)] = torch.nan
    return shares


def mask_area(masks: Tensor) -> Tensor:
    """N float64: share of the pixels within each mask N×H×W bool, which is the energy of a map that knows nothing."""
    if masks.dtype != torch.bool or masks.ndim != 3:
        raise ValueError(f"masks is {masks.dtype} of shape {tuple(masks.shape)}; expected bool of shape N×H×W")
    return masks.flatten(1).sum(1, dtype=torch.int32).double() / masks.shape[1:].numel()


def _dilated(masks: Tensor, radius: int) -> Tensor:
    """Adds all pixels within that distance: those whose disc contains any of the mask, counted by a convolution."""
    height, width = masks.shape[1:]
    size = (height + 2 * radius, width + 2 * radius)
    reach = torch.arange(-radius, radius + 1, device=masks.device)
    disc = (reach[:, None] ** 2 + reach**2 <= radius**2).float()
    # Counts are integers, so an error well below one half does no harm.
    counts = torch.fft.irfft2(torch.fft.rfft2(masks.float(), size) * torch.fft.rfft2(disc, size), size)
    return counts[:, radius : radius + height, radius : radius + width] > 0.5
