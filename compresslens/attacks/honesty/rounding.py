"""Do adversarials survive being stored as a picture?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compresslens.attacks.honesty.check import LEAST, Check, Curve, Verdict, skipped
from compresslens.attacks.margin import is_adversarial, margin
from compresslens.attacks.result import AttackResult
from compresslens.attacks.search import logits_in_chunks

BEYOND = (0.0, 0.02, 0.05, 0.1)  # further from the image than the least distance
JUDGED = 0.05  # of these, the one that counts
SURVIVING = (0.8, 0.95)  # least share: fail, warn
DITHERS = 2
LEVELS = 255


def rounding_check(network: nn.Module, images: Tensor, labels: Tensor, white: AttackResult, seed: int = 0) -> Check:
    """Share of adversarials that are still adversarial after rounding to 8 bits.

    A nearest adversarial lies on the boundary to the last bit, and where there are many pixels each of them changes by
    less than half a level, which rounding to the nearest undoes. So the point is first moved 5 % further from the
    image, and counts as surviving if rounding to the nearest level, or one of two roundings up or down at random
    without bias (dithering), leaves it adversarial.

    Args:
        network: from pixels to logits; its state is left as it was.
        images: N×C×H×W in [0, 1].
        labels: N int64.
        white: of these images.
        seed: of the dithering.
    """
    rows = torch.nonzero(white.success & (white.l2 > 0))[:, 0]
    if len(rows) == 0:
        return skipped("rounding", "there is no adversarial to round")
    images, labels, adversarials = images[rows], labels[rows], white.adversarials[rows]
    generator = torch.Generator().manual_seed(seed)
    nearest, survived = [], []
    for beyond in BEYOND:
        points = torch.clamp(images + (1 + beyond) * (adversarials - images), 0, 1)
        still = _fooled(network, torch.round(points * LEVELS) / LEVELS, labels)
        nearest.append(float(still.double().mean()))
        for _ in range(DITHERS):
            noise = torch.rand(points.shape, generator=generator).to(points)
            still |= _fooled(network, torch.floor(points * LEVELS + noise).clamp_max(LEVELS) / LEVELS, labels)
        survived.append(float(still.double().mean()))
    value = survived[BEYOND.index(JUDGED)]
    failed = value < SURVIVING[0] and round((1 - value) * len(rows)) >= LEAST
    verdict: Verdict = "fail" if failed else "warn" if value < SURVIVING[1] else "pass"
    reason = f"{value:.0%} of the adversarials survive rounding to 8 bits, {JUDGED:.0%} beyond the least distance"
    curves = (Curve("nearest", BEYOND, tuple(nearest)), Curve("nearest or dithered", BEYOND, tuple(survived)))
    labels_of_axes = ("distance beyond the least, relative", "share still adversarial")
    return Check("rounding", verdict, value, SURVIVING[0], reason, curves, *labels_of_axes)


def _fooled(network: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    return is_adversarial(margin(logits_in_chunks(network, points), labels))
