"""Is there a gradient to follow at all?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from compresslens.attacks.honesty.check import SHARE, Check, Curve, graded_images, worst
from compresslens.attacks.honesty.trace import Trace, is_useless, useless_curve
from compresslens.attacks.margin import margin
from compresslens.attacks.search import forward_rows
from compresslens.networks.modes import input_gradients

USELESS = 0.05  # greatest share of an image's gradients during the attack that may be zero or not a number


def gradient_check(clean: Tensor, trace: Trace) -> Check:
    """Share of images whose gradient is zero or not a number, or many of those that the attack takes on its way are.

    Zero gradients come from thresholds, rounding and saturated activations (Athalye et al. 2018,
    arXiv:1802.00420: shattered and vanishing gradients).

    Args:
        clean: N bool, from :func:`useless_gradients`.
        trace: of the attack.
    """
    count = len(clean)
    at_images = float(clean.double().mean())
    during = float(trace.useless.mean()) if len(trace) else 0.0
    taken = np.bincount(trace.samples, minlength=count)
    useless = np.bincount(trace.samples, trace.useless, minlength=count)
    hits = int((clean.cpu().numpy() | (useless > USELESS * taken)).sum())
    reason = f"{at_images:.0%} of the gradients at the images and {during:.0%} during the attack are zero or NaN"
    curves = (Curve("at the images", (0.0,), (at_images,)), useless_curve(trace))
    labels = ("progress of the attack", "share of useless gradients")
    verdict = worst(graded_images(hits, count), "warn" if during else "pass")
    return Check("gradients", verdict, hits / count, SHARE, reason, curves, *labels)


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
