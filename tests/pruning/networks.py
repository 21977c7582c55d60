"""Networks in which channels depend on each other in every way that convolutional networks know."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Plain(nn.Module):
    """Convolutions with and without a bias, flattened (not averaged) into two linear layers."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.conv2 = nn.Conv2d(8, 12, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.hidden = nn.Linear(12 * (size // 4) ** 2, 20)
        self.fc = nn.Linear(20, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.bn(self.conv2(F.relu(self.conv1(images)))))
        return self.fc(F.relu(self.hidden(maps.flatten(1))))


class Residual(nn.Module):
    """A stem, an identity shortcut, a projected one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.enter = nn.Conv2d(12, 16, 1)
        self.inner1 = nn.Conv2d(16, 24, 3, 1, 1)
        self.inner2 = nn.Conv2d(24, 16, 3, 1, 1)
        self.wide1 = nn.Conv2d(16, 20, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(20)
        self.wide2 = nn.Conv2d(20, 32, 3, 1, 1)
        self.project = nn.Conv2d(16, 32, 1, 2)
        self.fc = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.enter(F.relu(self.norm(self.stem(images))))
        maps = F.relu(maps + self.inner2(F.relu(self.inner1(maps))))
        maps = F.relu(self.project(maps) + self.wide2(F.relu(self.bn1(self.wide1(maps)))))
        return self.fc(maps.mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted residual with squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.widen = nn.Conv2d(8, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.each = nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.squeeze = nn.Conv2d(24, 6, 1)
        self.excite = nn.Conv2d(6, 24, 1)
        self.narrow = nn.Conv2d(24, 8, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 40, 1)
        self.fc = nn.Linear(40, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.bn(self.stem(images)))
        inner = F.relu(self.bn2(self.each(F.relu(self.bn1(self.widen(maps))))))
        gate = self.excite(F.relu(self.squeeze(inner.mean((2, 3), keepdim=True)))).sigmoid()
        maps = maps + self.bn3(self.narrow(inner * gate))
        return self.fc(F.relu(self.head(maps)).mean((2, 3)))


class Concatenated(nn.Module):
    """A dense block: every layer sees all before it, through a batch normalization over their concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 6 * number) for number in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(8 + 6 * number, 6, 3, 1, 1, bias=False) for number in range(3))
        self.transition = nn.Conv2d(26, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            maps = torch.cat([maps, layer(F.relu(norm(maps)))], 1)
        return self.fc(F.relu(self.transition(maps)).mean((2, 3)))


class Grouped(nn.Module):
    """Convolutions in groups, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.first = nn.Conv2d(16, 24, 3, 1, 1, groups=4)
        self.second = nn.Conv2d(24, 16, 3, 1, 1, groups=2)
        self.last = nn.Conv2d(16, 24, 1)
        self.fc = nn.Linear(24, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.second(F.relu(self.first(F.relu(self.stem(images))))))
        return self.fc(F.relu(self.last(maps)).mean((2, 3)))


ALL = [Plain, Residual, Depthwise, Concatenated, Grouped]


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """With normalizations that have seen something, so that nothing is 0 or 1 by initialization."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)
    return network
