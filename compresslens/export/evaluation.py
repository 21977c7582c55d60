"""Logits of many images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compresslens.networks.modes import device_of, dtype_of, evaluation_mode

BATCH = 32


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Float32 logits N×C, on the CPU, of images N×3×S×S in [0, 1]; the network is left as it was."""
    device, dtype = device_of(network), dtype_of(network)
    with evaluation_mode(network):
        parts = [network(part.to(device, dtype)).float().cpu() for part in images.split(BATCH)]
    return torch.cat(parts)
