"""A search along given directions, by forward passes alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compresslens.attacks.checks import check_classes, check_images, check_labels, check_logits
from compresslens.attacks.margin import is_adversarial, margin
from compresslens.attacks.result import NEVER, AttackResult
from compresslens.attacks.search import forward_rows
from compresslens.networks.modes import input_gradients

FACTORS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


def ray_search(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    directions: Tensor,
    *,
    steps: int = 10,
    targets: Tensor | None = None,
    confidence: float = 0.0,
    factors: tuple[float, ...] = FACTORS,
    chunk_size: int = 64,
) -> AttackResult:
    """The nearest adversarial clip(image + t·direction) on the ray of each image.

    It needs no gradient, so it judges networks that have none, such as a converted INT8 artefact: from the float
    network's adversarials, say. Increasing factors are tried until one is adversarial; bisection between it and the
    one before follows, so a narrow adversarial interval nearer to the image can be missed.

    Args:
        network: as in `carlini_wagner_l2`.
        images: N×C×H×W in [0, 1].
        labels: N int64.
        directions: N×C×H×W; a direction of zeros never succeeds.
        steps: bisections, each a forward pass.
        targets: as in `carlini_wagner_l2`.
        confidence: as in `carlini_wagner_l2`.
        factors: of the direction, increasing.
        chunk_size: images at a time.

    Returns:
        As of `carlini_wagner_l2`; no gradient evaluations.

    Raises:
        ValueError: bad images, labels or logits, or directions of another shape.
    """
    check_images(images)
    check_labels("labels", labels, images)
    if targets is not None:
        check_labels("targets", targets, images)
    if directions.shape != images.shape:
        raise ValueError(f"directions have shape {tuple(directions.shape)}, images {tuple(images.shape)}")
    aims = labels if targets is None else targets
    with input_gradients(network), torch.no_grad():
        images, directions, aims = (t.clone(memory_format=torch.contiguous_format) for t in (images, directions, aims))
        adversarials = images.clone()
        factor = torch.full((len(images),), torch.inf, dtype=images.dtype, device=images.device)
        for numbers in torch.arange(len(images), device=images.device).split(chunk_size):
            if len(numbers) == 0:
                continue
            found = _search_chunk(
                network,
                images[numbers],
                aims[numbers],
                directions[numbers],
                steps,
                targets is not None,
                confidence,
                factors,
                numbers,
            )
            factor[numbers] = found
            hit = torch.isfinite(found)
            at = numbers[hit]
            adversarials[at] = _at(images[at], directions[at], found[hit])
    success = torch.isfinite(factor)
    l2 = (adversarials.double() - images.double()).flatten(1).norm(dim=1)
    return AttackResult(
        adversarials=adversarials,
        success=success,
        l2=torch.where(success, l2, torch.inf),
        gradient_evaluations=torch.zeros_like(labels),
        first_success=torch.where(success, 0, NEVER),
    )


def _search_chunk(
    network: nn.Module,
    images: Tensor,
    aims: Tensor,
    directions: Tensor,
    steps: int,
    targeted: bool,
    confidence: float,
    factors: tuple[float, ...],
    numbers: Tensor,
) -> Tensor:
    """The least factor found for each image; infinite where there is none."""

    def fooled(rows: Tensor, factor: Tensor) -> Tensor:
        logits = forward_rows(network, _at(images[rows], directions[rows], factor))
        check_logits(logits, numbers[rows])
        check_classes("targets" if targeted else "labels", aims[rows], logits)
        margins = margin(logits, aims[rows])
        return is_adversarial(-margins if targeted else margins, confidence)

    everything = torch.arange(len(images), device=images.device)
    low = images.new_zeros(len(images))
    high = images.new_full((len(images),), torch.inf)
    high = torch.where(fooled(everything, low), 0.0, high)
    moving = directions.flatten(1).abs().amax(1) > 0
    for factor in factors:
        open_rows = everything[torch.isinf(high) & moving]
        if len(open_rows) == 0:
            break
        hit = fooled(open_rows, images.new_full((len(open_rows),), factor))
        high[open_rows[hit]] = factor
        low[open_rows[~hit]] = factor
    rows = everything[torch.isfinite(high) & (high > 0)]
    for _ in range(steps if len(rows) else 0):
        middle = (low[rows] + high[rows]) / 2
        hit = fooled(rows, middle)
        high[rows] = torch.where(hit, middle, high[rows])
        low[rows] = torch.where(hit, low[rows], middle)
    return high


def _at(images: Tensor, directions: Tensor, factor: Tensor) -> Tensor:
    return torch.clamp(images + factor[:, None, None, None] * directions, 0, 1)
