"""A network under attack: only its input moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def attackable(network: nn.Module) -> Iterator[nn.Module]:
    """Within the block the network is in eval mode, its parameters are frozen, and gradients of inputs are available.

    Frozen parameters spare their part of the backward pass and cannot accumulate gradients. Autocast is off: with
    bfloat16 the logits shift by more than many a margin. It works within `torch.no_grad` and `torch.inference_mode`.
    Every module's own train flag and every parameter's `requires_grad` are put back, on exceptions too.
    """
    training = [(module, module.training) for module in network.modules()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    devices = {parameter.device.type for parameter, _ in requires_grad} | {"cpu"}
    try:
        for module, _ in training:
            module.training = False
        for parameter, _ in requires_grad:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            autocasts = [torch.autocast(device, enabled=False) for device in sorted(devices)]
            for autocast in autocasts:
                autocast.__enter__()
            try:
                yield network
            finally:
                for autocast in reversed(autocasts):
                    autocast.__exit__(None, None, None)
    finally:
        for module, was in training:
            module.training = was
        for parameter, was in requires_grad:
            parameter.requires_grad_(was)
