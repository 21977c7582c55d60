"""A classifier whose first layer is its own normalization."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtracts a mean and divides by a standard deviation, per channel.

    Both follow from the architecture, so they are not written to checkpoints.

    Args:
        mean: One value per channel, in pixel units [0, 1].
        std: One positive value per channel, in pixel units [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Maps pixels N×3×H×W in [0, 1] to the range the backbone was designed for."""
        return (images - self.mean) / self.std


class PixelNetwork(nn.Module):
    """A classification backbone that takes pixels.

    Attacks, class activation maps and exported models therefore all live in the same space.

    Args:
        backbone: Maps normalized images N×3×H×W to logits N×num_classes.
        mean: Channel means that the backbone expects to be subtracted.
        std: Channel standard deviations that the backbone expects to be divided by.
        architecture: The name the backbone was created by.
        num_classes: Number of logits.
        image_size: Side in pixels of the square images the network is meant for.

    Attributes:
        recipe: The arguments by which `create_network` makes the same structure again, before any change.
        changes: What compression did to that structure; see `compresslens.networks.changes`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        architecture: str,
        num_classes: int,
        image_size: int,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.backbone = backbone
        self.architecture = architecture
        self.num_classes = num_classes
        self.image_size = image_size
        self.recipe: dict[str, Any] = {}
        self.changes: list[dict[str, Any]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Maps float32 images N×3×H×W in [0, 1] to logits N×num_classes."""
        return self.backbone(self.normalize(images))
