"""Measuring and cutting a network without leaving other traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def left_as_found(network: nn.Module) -> Iterator[None]:
    """Within the block the network is in eval mode, all parameters require a gradient and autograd records.

    Afterwards train flags, `requires_grad`, memory format and gradients are as they were, by name: that holds for
    parameters that the block put in the place of others, too, except that these have no gradient.
    """
    modes: list[tuple[Any, bool]] = [(module, module.training) for module in network.modules()]
    found = {name: (p, p.requires_grad, p.grad, _is_channels_last(p)) for name, p in network.named_parameters()}
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _, _, _ in found.values():
            parameter.requires_grad_(True)
            parameter.grad = None
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for name, parameter in network.named_parameters():
            before, requires_grad, gradient, channels_last = found[name]
            if channels_last:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient if parameter is before else None


def _is_channels_last(parameter: nn.Parameter) -> bool:
    """Whether it is stored so, and not in a way that is both (as a 1x1 kernel may be)."""
    return (
        parameter.ndim == 4
        and parameter.is_contiguous(memory_format=torch.channels_last)
        and not parameter.is_contiguous()
    )
