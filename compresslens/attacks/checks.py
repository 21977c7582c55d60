"""What an attack must be given."""

from __future__ import annotations

import torch
from torch import Tensor


def check_images(images: Tensor) -> None:
    """Raises ValueError unless these are images N×C×H×W in [0, 1]."""
    if images.ndim != 4 or images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images are {images.dtype} of shape {tuple(images.shape)}; expected float32 N×C×H×W")
    if images.numel() == 0:
        return
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # NaN fails, too
        raise ValueError(
            f"images range from {float(low):.4g} to {float(high):.4g}; attacks need pixels in [0, 1], "
            "with the normalization inside the network"
        )


def check_labels(name: str, labels: Tensor, images: Tensor) -> None:
    """Raises ValueError unless there is one non-negative class number per image."""
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{name} are {labels.dtype} of shape {tuple(labels.shape)}; expected int64, one for each of "
            f"{len(images)} images"
        )
    if labels.device != images.device:
        raise ValueError(f"{name} are on {labels.device} but images on {images.device}")
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"{name} contain {int(labels.min())}; classes count from 0")


def check_logits(logits: Tensor, numbers: Tensor) -> None:
    """Raises ValueError unless these are logits of at least two classes, and numbers."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"the network gives {tuple(logits.shape)}; expected logits N×C of at least two classes")
    broken = torch.isnan(logits).any(1)
    if broken.any():
        raise ValueError(f"the network's logits are NaN for image {int(numbers[broken][0])}")


def check_classes(name: str, labels: Tensor, logits: Tensor) -> None:
    """Raises ValueError unless logits N×C have a class for each of these numbers."""
    if len(labels) and int(labels.max()) >= logits.shape[1]:
        raise ValueError(f"{name} go up to {int(labels.max())} but the network has {logits.shape[1]} classes")
