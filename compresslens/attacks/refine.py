"""Refinement of adversarials that are known, by steps on the sphere: DDN with the margin as its loss.

Rony et al. 2019 (arXiv:1811.09600) decouple direction and norm: a step along the gradient, then a projection onto a
sphere that shrinks after every adversarial and grows after every other point. They ascend the cross-entropy; the margin
used here has a gradient that does not vanish where the network is sure. On the staircase that a quantized network's
margin is, where a linearization misleads, this finds what the projection solver misses.
"""

from __future__ import annotations

import math

import torch

from compresslens.attacks.search import Search

RATE = (1.0, 0.02)  # step along the gradient, as a share of the distance, first and last
RADIUS = (0.1, 0.002)  # by which the sphere shrinks or grows, first and last


def refine(search: Search, steps: int) -> None:
    """Spends `steps` gradient evaluations on each image for which the search has an adversarial."""
    rows = torch.nonzero(torch.isfinite(search.distance))[:, 0]
    if len(rows) == 0:
        return
    images = search.images[rows]
    offsets, radius = search.best[rows] - images, search.distance[rows]
    for step in range(steps):
        _, gradients, adversarial = search.evaluate(rows, images + offsets, offsets.norm(dim=1))
        progress = (1 + math.cos(math.pi * step / max(steps - 1, 1))) / 2
        rate = RATE[1] + (RATE[0] - RATE[1]) * progress
        change = RADIUS[1] + (RADIUS[0] - RADIUS[1]) * progress
        radius = torch.minimum(radius, search.distance[rows])
        radius = radius * torch.where(adversarial, 1 - change, 1 + change)
        length = gradients.norm(dim=1).clamp_min(torch.finfo(gradients.dtype).tiny)
        offsets = offsets - (rate * radius / length)[:, None] * gradients
        offsets = offsets * (radius / offsets.norm(dim=1).clamp_min(torch.finfo(gradients.dtype).tiny))[:, None]
        offsets = torch.clamp(images + offsets, 0, 1) - images
