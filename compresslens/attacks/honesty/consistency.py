"""What must not change an attack's distances, and what must always succeed (Carlini et al. 2019, arXiv:1902.06705)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from compresslens.attacks.honesty.check import AXES, Check, graded, median, skipped, success_curve
from compresslens.attacks.result import AttackResult

# Of the median distance: warn, fail. Where activations are rounded, the last bit of a logit, which the factor changes,
# can lead the search to another stair: some two percent either way.
SCALE_CHANGE = (0.02, 0.05)
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


def scale_check(white: AttackResult, scaled: Mapping[float, AttackResult]) -> Check:
    """The size of the logits must not matter: an attack that it misleads measures the size, not the distance.

    Args:
        white: of N images.
        scaled: the same attack where the logits are multiplied by the key.
    """
    curves = tuple(
        success_curve(f"logits × {factor:g}", result.l2) for factor, result in {1.0: white, **scaled}.items()
    )
    ours = median(white.l2)
    others = {factor: median(result.l2) for factor, result in scaled.items()}
    if math.isinf(ours) and all(map(math.isinf, others.values())):
        return skipped("logit_scale", "the attack fools less than half of the images at every scale", curves)
    changes = {factor: abs(_relative(ours, other)) for factor, other in others.items()}
    factor = max(changes, key=lambda key: changes[key])
    verdict = graded(changes[factor], *SCALE_CHANGE)
    reason = f"the median distance is {ours:.4g}, and {others[factor]:.4g} with the logits × {factor:g}"
    return Check("logit_scale", verdict, changes[factor], SCALE_CHANGE[1], reason, curves, *AXES)


def steps_check(white: AttackResult, longer: AttackResult) -> Check:
    """Twice the budget must not give larger distances; much smaller ones mean that the attack had not converged.

    Args:
        white: of N images.
        longer: the same attack with twice the evaluations.
    """
    curves = (success_curve("budget", white.l2), success_curve("twice the budget", longer.l2))
    ours, theirs = median(white.l2), median(longer.l2)
    if math.isinf(ours) and math.isinf(theirs):
        return skipped("more_steps", "the attack fools less than half of the images with either budget", curves)
    change = _relative(ours, theirs)
    warn, fail = STEPS_LONGER if change > 0 else STEPS_SHORTER
    reason = f"the median distance is {ours:.4g}, and {theirs:.4g} with twice the budget"
    threshold = math.copysign(fail, change)
    return Check("more_steps", graded(abs(change), warn, fail), change, threshold, reason, curves, *AXES)


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
    if math.isinf(ours):
        return -1.0
    return theirs / ours - 1 if ours > 0 else 0.0 if theirs == 0 else math.inf
