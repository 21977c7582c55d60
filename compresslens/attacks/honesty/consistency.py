"""What must not change an attack's distances, and what must always succeed (Carlini et al. 2019, arXiv:1902.06705)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compresslens.attacks.honesty.check import (
    AXES,
    SEVERITY,
    SHARE,
    Check,
    graded,
    graded_images,
    median,
    skipped,
    success_curve,
    worst,
)
from compresslens.attacks.result import AttackResult

ROUNDING = 1e-4  # of the largest logit: what the order of sums may change, in float32
# Of the median distance: warn, fail. Where activations are rounded, the last bit of a logit, which the factor changes,
# can lead the search to another stair: some two percent either way.
SCALE_CHANGE = (0.02, 0.05)
ANOTHER = 0.05  # a distance that is larger by more is another one
STEPS_LONGER = (0.01, 0.03)  # by which twice the budget may miss: warn, fail
STEPS_SHORTER = (0.02, 0.2)  # by which it may improve: warn, fail


class ScaledLogits(nn.Module):
    """A network whose logits are multiplied: the same decisions everywhere, and the same distances."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network = network
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×C."""
        return self.factor * self.network(images)


def deterministic_check(first: Tensor, second: Tensor) -> Check:
    """A network must answer twice the same: noise in it makes gradients random and distances a matter of luck.

    Athalye et al. 2018 (arXiv:1802.00420): stochastic gradients.

    Args:
        first: logits N×C of N images.
        second: those of another forward pass of the same images.
    """
    tolerance = ROUNDING * torch.maximum(first.abs(), second.abs()).amax(1, keepdim=True)
    differ = int(((first != second) & ~((first - second).abs() <= tolerance)).any(1).sum())
    count = len(first)
    reason = f"two forward passes differ by more than rounding on {differ} of {count} images"
    return Check("deterministic", graded_images(differ, count), differ / count, SHARE, reason)


def scale_check(white: AttackResult, scaled: Mapping[float, AttackResult]) -> Check:
    """The size of the logits must not matter: an attack that it misleads measures the size, not the distance.

    Neither to the median nor to single images, be it that they are fooled at one scale only.

    Args:
        white: of N images.
        scaled: the same attack where the logits are multiplied by the key.
    """
    curves = tuple(
        success_curve(f"logits × {factor:g}", result.l2) for factor, result in {1.0: white, **scaled}.items()
    )
    ours = median(white.l2)
    others = {factor: median(result.l2) for factor, result in scaled.items()}
    other_images = {factor: farther(r.l2, white.l2) + farther(white.l2, r.l2) for factor, r in scaled.items()}
    if math.isinf(ours) and all(map(math.isinf, others.values())) and not any(other_images.values()):
        return skipped("logit_scale", "the attack fools less than half of the images at every scale", curves)
    changes = {factor: abs(_relative(ours, other)) for factor, other in others.items()}
    verdicts = {
        factor: worst(graded(change, *SCALE_CHANGE), graded_images(other_images[factor], len(white)))
        for factor, change in changes.items()
    }
    factor = max(changes, key=lambda key: (SEVERITY.index(verdicts[key]), changes[key]))
    reason = (
        f"the median distance is {ours:.4g}, and {others[factor]:.4g} with the logits × {factor:g}; on "
        f"{other_images[factor]} of {len(white)} images it changes by more than {ANOTHER:.0%}"
    )
    return Check("logit_scale", verdicts[factor], changes[factor], SCALE_CHANGE[1], reason, curves, *AXES)


def steps_check(white: AttackResult, longer: AttackResult) -> Check:
    """Twice the budget must not give larger distances; much smaller ones mean that the attack had not converged.

    Nor must it fool images that the attack fails on, or fail on those that it fools.

    Args:
        white: of N images.
        longer: the same attack with twice the evaluations.
    """
    curves = (success_curve("budget", white.l2), success_curve("twice the budget", longer.l2))
    ours, theirs = median(white.l2), median(longer.l2)
    lost, gained = farther(longer.l2, white.l2), int((longer.success & ~white.success).sum())
    if math.isinf(ours) and math.isinf(theirs) and not lost + gained:
        return skipped("more_steps", "the attack fools less than half of the images with either budget", curves)
    change = _relative(ours, theirs)
    warn, fail = STEPS_LONGER if change > 0 else STEPS_SHORTER
    verdict = worst(graded(abs(change), warn, fail), *(graded_images(hits, len(white)) for hits in (lost, gained)))
    reason = (
        f"the median distance is {ours:.4g}, and {theirs:.4g} with twice the budget, which is farther by more than "
        f"{ANOTHER:.0%} on {lost} of {len(white)} images and fools {gained} more"
    )
    threshold = math.copysign(fail, change)
    return Check("more_steps", verdict, change, threshold, reason, curves, *AXES)


def farther(theirs: Tensor, ours: Tensor) -> int:
    """On how many of N images a distance is much larger than another; infinitely, where only the other is finite."""
    return int((theirs > ours * (1 + ANOTHER)).sum())


def unbounded_check(white: AttackResult) -> Check:
    """Without a bound on the distance, every image can be turned into one of another class.

    Args:
        white: of N images, by an attack that has no bound.
    """
    share = float(white.success.double().mean())
    reason = f"the white-box attack, which has no bound, fools {share:.0%} of the images"
    curves = (success_curve("white-box", white.l2),)
    return Check("unbounded", graded(1 - share, 0, 0), share, 1.0, reason, curves, *AXES)


def _relative(ours: float, theirs: float) -> float:
    """Change from one median to another; infinite if only the second is, -1 if only the first is."""
    if ours == theirs:
        return 0.0
    return -1.0 if math.isinf(ours) else theirs / ours - 1 if ours > 0 else math.inf
