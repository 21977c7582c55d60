"""What a probe may not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from compresslens.random_state import seeded


@contextmanager
def undisturbed(networks: list[nn.Module], seed: int, device: torch.device) -> Iterator[None]:
    """Whatever happens in the block, the networks and the random states are as before afterwards, on exceptions too.

    Within it all modules are in eval mode, parameters have no gradients, random states follow from the seed, and there
    is neither autograd nor inference mode nor autocast.
    """
    flags = [(part, part.training) for network in networks for part in network.modules()]
    parameters = [(p, p.requires_grad, p.grad) for network in networks for p in network.parameters()]
    try:
        for part, _ in flags:
            part.training = False
        for parameter, _, _ in parameters:
            parameter.grad = None
        with (
            seeded(seed, device),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        for part, was in flags:
            part.training = was
        for parameter, required, gradient in parameters:
            parameter.requires_grad_(required)
            parameter.grad = gradient
