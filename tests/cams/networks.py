"""Networks with all kinds of endings behind the last feature map."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5
SIZE = 16


class Small(nn.Module):
    """Two convolutions, the second one's ReLU a function; then whatever `end` makes of the maps 6×8×8."""

    def __init__(self, end: Callable[[Small, Tensor], Tensor], features: int = 6, seed: int = 0) -> None:
        super().__init__()
        self.end = end
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(3, 8, 3, 1, 1)
            self.act = nn.ReLU(inplace=True)
            self.squeeze = nn.Linear(8, 8)
            self.conv2 = nn.Conv2d(8, 6, 3, 2, 1)
            self.hidden = nn.Linear(features, 12)
            self.fc = nn.Linear(features, CLASSES)
            self.last = nn.Linear(12, CLASSES)
            self.scores = nn.Conv2d(6, CLASSES, 1)

    def gated(self, maps: Tensor) -> Tensor:
        """Squeeze-and-excitation, which pools, too."""
        return maps * self.squeeze(maps.mean((2, 3))).sigmoid()[:, :, None, None]

    def maps(self, images: Tensor) -> Tensor:
        """What is pooled: N×6×8×8."""
        return F.relu(self.conv2(self.gated(self.act(self.conv1(images)))), inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self, self.maps(images))


def mean(network: Small, maps: Tensor) -> Tensor:
    return network.fc(maps.mean((2, 3)))


def adaptive(network: Small, maps: Tensor) -> Tensor:
    return network.fc(F.dropout(F.adaptive_avg_pool2d(maps, 1).flatten(1), 0.5, network.training, inplace=True))


def by_keyword(network: Small, maps: Tensor) -> Tensor:
    return network.fc(F.adaptive_avg_pool2d(input=maps, output_size=1)[:, :, 0, 0])


def factorized(network: Small, maps: Tensor) -> Tensor:
    return network.last(network.hidden(maps.mean((2, 3))))


def hidden(network: Small, maps: Tensor) -> Tensor:
    return network.last(F.relu(network.hidden(maps.mean((2, 3))), inplace=True))


def maximum(network: Small, maps: Tensor) -> Tensor:
    return network.fc(maps.amax((2, 3)))


def both(network: Small, maps: Tensor) -> Tensor:
    return network.fc(torch.cat([F.adaptive_avg_pool2d(maps, 1), F.adaptive_max_pool2d(maps, 1)], 1).flatten(1))


def grid(network: Small, maps: Tensor) -> Tensor:
    return network.last(F.relu(network.hidden(F.dropout(F.adaptive_avg_pool2d(maps, 2), 0.5, False).flatten(1))))


def flattened(network: Small, maps: Tensor) -> Tensor:
    return network.last(F.relu(network.hidden(maps.flatten(1).relu_()), inplace=True))


def scores(network: Small, maps: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(network.scores(maps), 1).flatten(1)


def normalized(network: Small, maps: Tensor) -> Tensor:
    vector = F.adaptive_avg_pool2d(maps, 1).permute(0, 2, 3, 1)  # N×1×1×C is no map
    return network.fc(F.layer_norm(vector, (6,)).permute(0, 3, 1, 2).flatten(1))


FEATURES = {both: 12, grid: 24, flattened: 6 * 64}
POOLED = (mean, adaptive, by_keyword, factorized, hidden, maximum, both, grid, flattened, normalized)


def small(end: Callable[[Small, Tensor], Tensor] = mean) -> Small:
    return Small(end, FEATURES.get(end, 6)).eval()


def images(count: int = 3, size: int = SIZE, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
