"""Is there a gradient to follow at all?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compresslens.attacks.honesty.check import Check, Curve, graded
from compresslens.attacks.honesty.trace import Trace, is_useless, useless_curve
from compresslens.attacks.margin import margin
from compresslens.attacks.search import forward_rows
from compresslens.networks.modes import input_gradients

USELESS = 0.05  # greatest share of gradients that may be zero or not a number


def gradient_check(clean: Tensor, trace: Trace) -> Check:
    """Share of gradients that are zero or not numbers, at the images and during the attack; the larger one counts.

    Zero gradients come from thresholds, rounding and saturated activations (Athalye et al. 2018,
    arXiv:1802.00420: shattered and vanishing gradients).

    Args:
        clean: N bool, from :func:`useless_gradients`.
        trace: of the attack.
    """
    at_images = float(clean.double().mean())
    during = float(trace.useless.mean()) if len(trace) else 0.0
    value = max(at_images, during)
    reason = f"{at_images:.0%} of the gradients at the images and {during:.0%} during the attack are zero or NaN"
    curves = (Curve("at the images", (0.0,), (at_images,)), useless_curve(trace))
    labels = ("progress of the attack", "share of useless gradients")
    return Check("gradients", graded(value, 0, USELESS), value, USELESS, reason, curves, *labels)


def useless_gradients(network: nn.Module, images: Tensor, labels: Tensor, chunk_size: int = 64) -> Tensor:
    """Whether the margin's gradient is zero, too small to be squared in float32, or not a number (bool, N).

    Args:
        network: from pixels to logits; its state is left as it was.
        images: N×C×H×W in [0, 1].
        labels: N int64.
        chunk_size: images at a time.
    """
    useless = torch.ones_like(labels, dtype=torch.bool)
    with input_gradients(network):
        for rows in torch.arange(len(images), device=images.device).split(chunk_size):
            inputs = images[rows].clone().requires_grad_(True)
            margins = margin(forward_rows(network, inputs), labels[rows].clone())
            if not margins.requires_grad:
                continue
            (gradient,) = torch.autograd.grad(margins.sum(), inputs, allow_unused=True)
            if gradient is not None:
                useless[rows] = is_useless(gradient.flatten(1).norm(dim=1))
    return useless
