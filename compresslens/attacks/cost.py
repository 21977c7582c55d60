"""What an evaluation of the network itself costs, so that it can be divided out of what an attack costs."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from compresslens.attacks.margin import margin
from compresslens.attacks.search import forward_rows
from compresslens.networks.modes import input_gradients


def gradient_seconds(network: nn.Module, images: Tensor, labels: Tensor, repeats: int = 3) -> float:
    """Seconds that one gradient evaluation (forward and backward) takes per image, in a batch of these.

    Args:
        network: from pixels to logits; one without a gradient is only run forward.
        images: N×C×H×W in [0, 1], at least one.
        labels: N int64.
        repeats: the median of so many counts; one more before them does not.
    """
    taken = []
    with input_gradients(network):
        for _ in range(repeats + 1):
            began = now(images.device)
            inputs = images.detach().requires_grad_(True)
            margins = margin(forward_rows(network, inputs), labels)
            if margins.requires_grad:
                torch.autograd.grad(margins.sum(), inputs)
            taken.append(now(images.device) - began)
    return sorted(taken[1:])[repeats // 2] / len(images)


def now(device: torch.device) -> float:
    """Seconds on a clock, when all that the device was told to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
