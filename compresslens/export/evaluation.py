"""Running a network without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

BATCH = 32


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Within the block the network evaluates, without autograd; afterwards its modes and the random state are back.

    Inference mode is left, too: libraries that look at every operator do not get along with it. The flags are set one
    by one: graphs of `torch.export` refuse `eval()`.
    """
    modes = [(module, module.training) for module in network.modules()]
    device = device_of(network)
    try:
        for module, _ in modes:
            module.training = False
        devices = [device] if device.type == "cuda" else []
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        for module, training in modes:
            module.training = training


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Float32 logits N×C, on the CPU, of images N×3×S×S in [0, 1]; the network is left as it was."""
    device, dtype = device_of(network), dtype_of(network)
    with evaluation_mode(network):
        parts = [network(part.to(device, dtype)).float().cpu() for part in images.split(BATCH)]
    return torch.cat(parts)


def device_of(network: nn.Module) -> torch.device:
    """Where its parameters (or, if it has none, its buffers) are; the CPU if there are neither."""
    tensor = next(network.parameters(), next(network.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type of its floating-point parameters; float32 if it has none."""
    found = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
    return torch.float32 if found is None else found
