"""No other attack may find what the white-box attack misses.

An attack that sees the gradient must beat those that see less (Carlini et al. 2019, arXiv:1902.06705;
Athalye et al. 2018, arXiv:1802.00420). Where a blind one wins, the gradient misleads, and the distance says
nothing about the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from compresslens.attacks.honesty.check import AXES, Check, Curve, Verdict, graded, median, skipped, success_curve
from compresslens.attacks.result import AttackResult

LEVEL = 0.05  # of the sign test
SAME = 0.01  # a distance that is longer by less is not a defeat
NOISE_RATIO = (1.5, 2.0)  # least median distance of noise, as a multiple of the attack's: fail, warn
NOISE_SHARE = 0.05  # greatest share of images on which noise may be nearer
TRANSFER_GAIN = 0.01  # greatest gain in the median distance
TRANSFER_SHARE = 0.1  # share of images that is worth a warning


def rival_check(
    name: str, rival: str, white: AttackResult, results: Sequence[AttackResult], radii: Sequence[float]
) -> Check:
    """Within each radius the white-box attack must fool at least as many images as another attack.

    The same images were attacked by both, so those count that only one of them fools: a sign test (McNemar 1947, in its
    exact form) says how many more the other one may win by chance.

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
    worst = (-math.inf, 0.0, 0.0, 0, 0, 0.0)
    shares = []
    for radius, result in zip(radii, results, strict=True):
        theirs = result.success & (result.l2 <= radius * (1 + 1e-5))
        wins = int((theirs & (white.l2 > result.l2 * (1 + SAME)) & (white.l2 > radius)).sum())
        losses = int((~theirs & (white.l2 <= radius)).sum())
        slack = allowed_excess(wins + losses) / count
        excess = (wins - losses) / count
        worst = max(worst, (excess - slack, excess, slack, int(theirs.sum()), int((white.l2 <= radius).sum()), radius))
        shares.append(int(theirs.sum()) / count)
    curves = (success_curve("white-box", white.l2), Curve(rival, tuple(radii), tuple(shares)))
    if max(shares) == 0 and not white.success.any():
        return skipped(name, f"neither {rival} nor the white-box attack fools a single image", curves)
    _, excess, slack, theirs_count, ours_count, radius = worst
    reason = f"{rival} fools {theirs_count} of {count} images within {radius:.3g}, the white-box attack {ours_count}"
    return Check(name, graded(excess, 0, slack), excess, slack, reason, curves, *AXES)


def allowed_excess(discordant: int, level: float = LEVEL) -> int:
    """The largest surplus of wins over losses, of so many in all, that equal attacks reach with more than `level`."""
    total = 2**discordant
    tail, wins = 0, discordant
    while 2 * wins >= discordant:
        tail += math.comb(discordant, wins)
        if tail > level * total:
            return 2 * wins - discordant
        wins -= 1
    return 0


def noise_check(white: AttackResult, noise: AttackResult) -> Check:
    """Gaussian noise must be much weaker: a random direction of D dimensions has 1/√D of the gradient's effect.

    Args:
        white: of N images.
        noise: nearest adversarial of each image along some random directions.
    """
    curves = (success_curve("white-box", white.l2), success_curve("Gaussian noise", noise.l2))
    ours, theirs = median(white.l2), median(noise.l2)
    nearer = float((noise.l2 < white.l2 * (1 - SAME)).double().mean())
    if math.isinf(ours) and math.isinf(theirs) and nearer <= NOISE_SHARE:
        return skipped("noise", "neither noise nor the white-box attack fools half of the images", curves)
    ratio = 0.0 if math.isinf(ours) else math.inf if ours == 0 else theirs / ours
    failed = nearer > NOISE_SHARE or ratio < NOISE_RATIO[0]
    doubtful = nearer > 0 or ratio < NOISE_RATIO[1]
    reason = (
        f"Gaussian noise has a median distance of {theirs:.3g}, the white-box attack of {ours:.3g}; noise is nearer on "
        f"{nearer:.0%} of the images"
    )
    verdict: Verdict = "fail" if failed else "warn" if doubtful else "pass"
    return Check("noise", verdict, ratio, NOISE_RATIO[0], reason, curves, *AXES)


def transfer_check(white: AttackResult, transfer: AttackResult | None) -> Check:
    """What fools the reference, taken as a direction, must not lead to nearer adversarials than the white-box attack.

    Args:
        white: of N images.
        transfer: nearest adversarial of each image along the reference's perturbation; None: there is no reference.
    """
    if transfer is None:
        return skipped("transfer", "there is no reference network")
    curves = (success_curve("white-box", white.l2), success_curve("from the reference", transfer.l2))
    if not transfer.success.any():
        return skipped("transfer", "no perturbation of the reference network fools this one in its direction", curves)
    ours, together = median(white.l2), median(white.l2.minimum(transfer.l2))
    share = float((transfer.l2 < white.l2 * (1 - SAME)).double().mean())
    gain = 0.0 if math.isinf(together) or ours == 0 else 1 - together / ours
    verdict: Verdict = "fail" if gain > TRANSFER_GAIN else "warn" if share > TRANSFER_SHARE else "pass"
    reason = (
        f"the reference's perturbations shorten the median distance by {gain:.1%} and win on {share:.0%} of the images"
    )
    return Check("transfer", verdict, gain, TRANSFER_GAIN, reason, curves, *AXES)


def quartiles(l2: Tensor) -> list[float]:
    """Up to three different radii: the quartiles of those of N distances that are finite and positive."""
    found = l2[l2.isfinite() & (l2 > 0)]
    if len(found) == 0:
        return []
    shares = found.new_tensor([0.25, 0.5, 0.75])
    return sorted(set(found.quantile(shares).tolist()))
