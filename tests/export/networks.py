"""Networks small enough to be exported in a second."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresslens.networks import PixelNetwork, create_network
from compresslens.networks.changes import Change, record_change

SIZE = 32
CLASSES = 10
KEPT = 5


def plain() -> PixelNetwork:
    """A residual network of four stages, with running statistics that are not those of a new one."""
    network = create_network("test_resnet", CLASSES, image_size=SIZE, stem="imagenet")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 4) ** 0.5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.abs_().add_(0.5)
                module.running_mean.copy_(torch.randn(len(module.weight), generator=generator) / 10)
                module.running_var.copy_(1 + torch.rand(len(module.weight), generator=generator))
    return network


def narrow(network: nn.Module, change: Change) -> None:
    """A change of structure: all but so many channels between the two convolutions of a block are taken away."""
    kept = change["kept"]
    block: Any = network.backbone.layer1[0]
    with torch.no_grad():
        first, norm = nn.Conv2d(block.conv1.in_channels, kept, 3, padding=1, bias=False), nn.BatchNorm2d(kept)
        second = nn.Conv2d(kept, block.conv2.out_channels, 3, padding=1, bias=False)
        first.weight.copy_(block.conv1.weight[:kept])
        second.weight.copy_(block.conv2.weight[:, :kept])
        norm.load_state_dict({k: v[:kept] if v.ndim else v for k, v in block.bn1.state_dict().items()})
    block.conv1, block.bn1, block.conv2 = first, norm, second
    record_change(network, change)


def narrowed(monkeypatch: pytest.MonkeyPatch) -> PixelNetwork:
    """`plain` after a change that `apply_changes` knows as long as the test lasts."""
    monkeypatch.setattr("compresslens.networks.changes.apply_change", narrow)
    network = plain()
    narrow(network, {"kind": "narrow", "kept": KEPT})
    return network


def images(count: int) -> Tensor:
    """Noise in [0, 1]."""
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
