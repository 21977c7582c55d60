"""What an attack found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NEVER = -1


class Evaluation(NamedTuple):
    """One pass forward and backward through the network, as an observer of an attack sees it; M rows.

    Attributes:
        samples: M int64, the number of the image within the call; an image may have several rows.
        points: M×C×H×W in [0, 1], where the network was evaluated.
        margins: M float32, see `compresslens.attacks.margin`.
        gradients: M×C×H×W, of the margin that the row works on.
    """

    samples: Tensor
    points: Tensor
    margins: Tensor
    gradients: Tensor


@dataclass(frozen=True)
class AttackResult:
    """Least adversarial perturbations of N images.

    Attributes:
        adversarials: N×C×H×W float32 in [0, 1]; the image itself where the attack failed.
        success: N bool.
        l2: N float64, Euclidean distance in [0, 1] pixel units; infinite where the attack failed, 0 where the image was
            misclassified to begin with.
        gradient_evaluations: N int64; a backward pass of a sample counts one.
        first_success: N int64, gradient evaluations until the first adversarial; 0 where misclassified to begin with,
            `NEVER` (-1) where the attack failed.
    """

    adversarials: Tensor
    success: Tensor
    l2: Tensor
    gradient_evaluations: Tensor
    first_success: Tensor

    def __len__(self) -> int:
        return len(self.success)


def concatenate(results: list[AttackResult]) -> AttackResult:
    """The results of consecutive images in one."""
    return AttackResult(*(torch.cat([getattr(result, name) for result in results]) for name in FIELDS))


def least_distance(*results: AttackResult) -> AttackResult:
    """Of several attacks on the same images, each image's nearest adversarial (the per-sample envelope).

    Gradient evaluations add up, in the order given: so does the count until the first success.

    Raises:
        ValueError: no results, or of different numbers of images.
    """
    if not results or len({len(result) for result in results}) != 1:
        raise ValueError(f"expected results of the same images, got {[len(result) for result in results]} images")
    best = results[0]
    for other in results[1:]:
        closer = other.l2 < best.l2
        later = torch.where(
            other.first_success == NEVER, other.first_success, other.first_success + best.gradient_evaluations
        )
        best = AttackResult(
            adversarials=torch.where(closer[:, None, None, None], other.adversarials, best.adversarials),
            success=best.success | other.success,
            l2=torch.minimum(best.l2, other.l2),
            gradient_evaluations=best.gradient_evaluations + other.gradient_evaluations,
            first_success=torch.where(best.first_success == NEVER, later, best.first_success),
        )
    return best


FIELDS = ("adversarials", "success", "l2", "gradient_evaluations", "first_success")
