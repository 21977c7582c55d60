"""Networks for the tests of factorization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compresslens.low_rank.ranks import candidate
from compresslens.low_rank.selection import decomposition, method_for, select_layers
from compresslens.low_rank.uses import measure_uses
from tests.low_rank.layers import convolution

SIZE = 12


class SmallNetwork(nn.Module):
    """Kernels of several sizes, a depthwise one, a 1×1 one, a hidden linear layer; all in double precision."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._build(width)

    def _build(self, width: int) -> None:
        self.stem = convolution(width, 3, 3, 3, padding=1)
        self.body = nn.Sequential(
            convolution(2 * width, width, 3, 3, seed=1, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width).double(),
            nn.ReLU(),
            convolution(2 * width, 2 * width, 1, 1, seed=3, bias=False),
            nn.ReLU(),
            convolution(3 * width, 2 * width, 1, 5, seed=4, padding="same"),
            nn.ReLU(),
        )
        self.hidden = nn.Linear(3 * width, 2 * width).double()
        with torch.no_grad():
            self.hidden.weight.copy_(convolution(2 * width, 3 * width, 1, 1, seed=5).weight.flatten(1))
        self.head = nn.Linear(2 * width, 4).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.hidden(self.body(self.stem(images)).mean((2, 3))).relu())


def full_plan(network: nn.Module, method: Any, image_size: int) -> dict[str, dict[str, Any]]:
    """Replaces every layer that can be, whether it pays or not, at ranks that leave nothing out."""
    uses, _ = measure_uses(network, image_size)
    plan = {}
    for name, layer in select_layers(network, uses, [], None).items():
        own = method_for(layer, method)
        ranks = candidate(layer, decomposition(own), uses[layer]).ranks_at(1.0)
        plan[name] = {"method": own, "ranks": ranks}
    return plan
