"""Small networks trained on scikit-learn's 8×8 digits, once per session, for the tests of attacks."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

SIDE = 10
STEPS = 150


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1,797 real digits, N×1×10×10 in [0, 1], and their labels, in a shuffled order."""
    raw = load_digits()
    images = torch.from_numpy(raw.images).float()[:, None] / 16
    images = F.interpolate(images, SIDE, mode="bilinear", align_corners=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order].contiguous(), torch.from_numpy(raw.target).long()[order]


def untrained() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 9, 10),
    )  # fmt: skip


@cache
def trained(radius: float = 0.0) -> nn.Sequential:
    """A network in eval mode; with a radius, trained on L2 adversarials of one normalized step (Madry et al. 2018)."""
    images, labels = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = untrained()
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(STEPS):
            rows = torch.randint(300, len(images), (128,))
            x, y = images[rows], labels[rows]
            if radius:
                x = _ascend(network, x, y, radius)
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def _ascend(network: nn.Module, images: Tensor, labels: Tensor, radius: float) -> Tensor:
    moved = images
    for _ in range(2):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(moved), labels), moved)
        step = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
        offset = moved.detach() + radius / 1.5 * step - images
        length = offset.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
        moved = (images + offset * (radius / length).clamp_max(1)).clamp(0, 1)
    return moved.detach()


def correct(network: nn.Module, count: int = 24) -> tuple[Tensor, Tensor]:
    """Some of the 300 images that no network was trained on, which this one classifies correctly."""
    images, labels = (part[:300] for part in digits())
    with torch.no_grad():
        right = torch.nonzero(network(images).argmax(1) == labels)[:count, 0]
    return images[right], labels[right]
