"""No other attack may find what the white-box attack misses.

An attack that sees the gradient must beat those that see less (Carlini et al. 2019, arXiv:1902.06705;
Athalye et al. 2018, arXiv:1802.00420). Where a blind one wins, the gradient misleads, and the distance says
nothing about the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compresslens.attacks.honesty.check import (
    AXES,
    LEAST,
    SHARE,
    Check,
    Curve,
    Verdict,
    graded_images,
    median,
    skipped,
    success_curve,
    worst,
)
from compresslens.attacks.result import AttackResult

SAME = 0.01  # a distance that is shorter by less is not nearer
NOISE_RATIO = (1.5, 2.0)  # least median distance of noise, as a multiple of the attack's: fail, warn
TRANSFER = (0.01, 0.1)  # greatest gain in the median distance; share of images that is worth a warning
TRANSFER_TO_ARTEFACT = (0.05, 0.5)  # the reference may be the same but for the rounding, its perturbations as good


def rival_check(
    name: str, rival: str, white: AttackResult, results: Sequence[AttackResult], radii: Sequence[float]
) -> Check:
    """Another attack, run within some radii, must not find what is nearer than the white-box attack's.

    That the white-box attack wins on other images is no excuse: gradients may be masked on some of them only.

    Args:
        name: of the check.
        rival: what the other attack is called.
        white: of N images.
        results: of the other attack, one for each radius.
        radii: bounds of the L2 distance, increasing.
    """
    if not radii:
        return skipped(name, "no attack found anything to take a radius from")
    count = len(white)
    nearer = torch.zeros_like(white.success)
    theirs, ours = [], []
    for radius, result in zip(radii, results, strict=True):
        within = result.success & (result.l2 <= radius * (1 + 1e-5))
        nearer |= within & is_nearer(result.l2, white.l2)
        theirs.append(int(within.sum()))
        ours.append(int((white.l2 <= radius).sum()))
    curves = (success_curve("white-box", white.l2), Curve(rival, tuple(radii), tuple(k / count for k in theirs)))
    if max(theirs) == 0 and not white.success.any():
        return skipped(name, f"neither {rival} nor the white-box attack fools a single image", curves)
    hits = int(nearer.sum())
    at = max(range(len(radii)), key=lambda k: theirs[k] - ours[k])
    reason = (
        f"{rival} is nearer than the white-box attack on {hits} of {count} images; within {radii[at]:.3g} it fools "
        f"{theirs[at]}, the white-box attack {ours[at]}"
    )
    return Check(name, graded_images(hits, count), hits / count, SHARE, reason, curves, *AXES)


def is_nearer(theirs: Tensor, ours: Tensor) -> Tensor:
    """Where a distance is clearly less than another (N bool)."""
    return theirs < ours * (1 - SAME)


def noise_check(white: AttackResult, noise: AttackResult) -> Check:
    """Gaussian noise must be much weaker: a random direction of D dimensions has 1/√D of the gradient's effect.

    Args:
        white: of N images.
        noise: nearest adversarial of each image along some random directions.
    """
    curves = (success_curve("white-box", white.l2), success_curve("Gaussian noise", noise.l2))
    ours, theirs = median(white.l2), median(noise.l2)
    nearer = int(is_nearer(noise.l2, white.l2).sum())
    on_images = graded_images(nearer, len(white))
    if math.isinf(ours) and math.isinf(theirs) and on_images != "fail":
        return skipped("noise", "neither noise nor the white-box attack fools half of the images", curves)
    ratio = 0.0 if math.isinf(ours) else math.inf if ours == 0 else theirs / ours
    in_median: Verdict = "fail" if ratio < NOISE_RATIO[0] else "warn" if ratio < NOISE_RATIO[1] else "pass"
    reason = (
        f"Gaussian noise has a median distance of {theirs:.3g}, the white-box attack of {ours:.3g}; noise is nearer on "
        f"{nearer} of {len(white)} images"
    )
    return Check("noise", worst(on_images, in_median), ratio, NOISE_RATIO[0], reason, curves, *AXES)


def transfer_check(white: AttackResult, transfer: AttackResult | None, limits: tuple[float, float] = TRANSFER) -> Check:
    """What fools the reference, taken as a direction, must not lead to nearer adversarials than the white-box attack.

    Args:
        white: of N images, without the help of the reference.
        transfer: nearest adversarial of each image along the reference's perturbation; None: there is no reference.
        limits: gain in the median distance beyond which the check fails; share of images that is worth a warning.
    """
    if transfer is None:
        return skipped("transfer", "there is no reference network")
    curves = (success_curve("white-box", white.l2), success_curve("from the reference", transfer.l2))
    if not transfer.success.any():
        return skipped("transfer", "no perturbation of the reference network fools this one in its direction", curves)
    ours, together = median(white.l2), median(white.l2.minimum(transfer.l2))
    nearer = int(is_nearer(transfer.l2, white.l2).sum())
    gain = 0.0 if math.isinf(together) or ours == 0 else 1 - together / ours
    doubtful = gain > limits[0] or nearer > limits[1] * len(white)
    verdict: Verdict = "fail" if gain > limits[0] and nearer >= LEAST else "warn" if doubtful else "pass"
    reason = (
        f"the reference's perturbations shorten the median distance by {gain:.1%} and win on {nearer} of {len(white)} "
        "images"
    )
    return Check("transfer", verdict, gain, limits[0], reason, curves, *AXES)


def quartiles(l2: Tensor) -> list[float]:
    """Up to three different radii: the quartiles of those of N distances that are finite and positive."""
    found = l2[l2.isfinite() & (l2 > 0)]
    if len(found) == 0:
        return []
    shares = found.new_tensor([0.25, 0.5, 0.75])
    return sorted(set(found.quantile(shares).tolist()))
