"""Small networks for the tests of INT8 quantization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compresslens.networks import PixelNetwork
from tests.lightning_modules.tiny import CLASSES, SIZE


class Residual(nn.Module):
    """Convolutions with and without bias, batch normalization with its own epsilon, a sum, dropout, a classifier."""

    def __init__(self, dropout: float = 0.25, epsilon: float = 1e-2, momentum: float = 0.3) -> None:
        super().__init__()
        self.num_classes = CLASSES
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(8, epsilon, momentum)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8, epsilon / 2, momentum / 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        first = self.relu(self.bn1(self.stem(images)))
        second = self.relu(first + self.bn2(self.conv(first)))
        return self.fc(self.dropout(self.pool(second).flatten(1)))


def residual(seed: int = 0, **options: float) -> PixelNetwork:
    """A network in eval mode whose batch normalization has seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = Residual(**options)
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
                module.running_var.uniform_(0.01, 0.2)  # type: ignore[union-attr]
    return PixelNetwork(backbone, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "residual", CLASSES, SIZE).eval()


def images(count: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
