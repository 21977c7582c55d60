"""What all measures of maps ask of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def check_maps(maps: Tensor, name: str = "maps") -> None:
    """Raises ValueError unless the maps are N×H×W floating-point numbers with at least one pixel each."""
    if maps.ndim != 3 or not maps.is_floating_point() or maps.shape[1:].numel() == 0:
        raise ValueError(f"{name} is {_describe(maps)}; expected floating-point numbers of shape N×H×W")


def check_masks(maps: Tensor, masks: Tensor) -> None:
    """Raises ValueError unless maps are as in :func:`check_maps`, and masks bool, of the same shape, on that device."""
    check_maps(maps)
    if masks.dtype != torch.bool:
        raise ValueError(f"masks is {_describe(masks)}; expected bool: compare soft masks with a threshold")
    if masks.shape != maps.shape:
        raise ValueError(f"masks has shape {tuple(masks.shape)} but maps has {tuple(maps.shape)}; resize one of them")
    if masks.device != maps.device:
        raise ValueError(f"masks is on {masks.device} but maps is on {maps.device}")


def check_alike(maps: Tensor, others: Tensor) -> None:
    """Raises ValueError unless both are maps as in :func:`check_maps`, of one shape."""
    check_maps(maps)
    check_maps(others, "others")
    if maps.shape != others.shape:
        raise ValueError(f"maps has shape {tuple(maps.shape)} but others has {tuple(others.shape)}; pairs are alike")


def constant(maps: Tensor) -> Tensor:
    """N booleans: whether a map has one value everywhere, and so nothing to say about places."""
    return maps.amax((1, 2)) == maps.amin((1, 2))


def any_inside(masks: Tensor) -> Tensor:
    """N booleans: whether a mask N×… bool has any pixel. As bytes, which is 20 times as fast as `any` on the CPU."""
    return masks.flatten(1).view(torch.uint8).amax(1) > 0


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
