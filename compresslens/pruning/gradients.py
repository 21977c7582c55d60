"""Gradients of the loss on a few training images, for first-order criteria."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresslens.errors import UserError
from compresslens.pruning.untouched import left_as_found


def loss_gradients(network: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy over all images, in eval mode, by the names of the parameters.

    Args:
        network: pixels to logits; left as it was, gradients included.
        batches: `(images N×3×H×W, labels N, ...)`.

    Returns:
        In the parameters' shapes and types, on their device; zero where a parameter has no influence.

    Raises:
        UserError: there is no image.
    """
    parameters = dict(network.named_parameters())
    device = next(iter(parameters.values())).device
    total = [torch.zeros_like(parameter) for parameter in parameters.values()]
    count = 0
    with left_as_found(network):
        for images, labels, *_ in batches:
            logits = network(images.to(device)).float()
            loss = F.cross_entropy(logits, labels.to(device), reduction="sum")
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            count += len(labels)
            for sum_, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sum_ += gradient
    if count == 0:
        raise UserError("the taylor criterion needs images to compute gradients on: set calibration_samples")
    return {name: sum_ / count for name, sum_ in zip(parameters, total, strict=True)}
