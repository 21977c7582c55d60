"""How far a classification is from being wrong."""

from __future__ import annotations

import torch
from torch import Tensor

UNTARGETED = -1


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other logit: Carlini & Wagner 2017, f_6 before the clipping.

    The label is left out by masking, so adding a constant to all logits changes nothing.

    Args:
        logits: N×C, C at least 2.
        labels: class indices N.

    Returns:
        N numbers; negative where another class wins.
    """
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def lane_margin(logits: Tensor, labels: Tensor, against: Tensor) -> Tensor:
    """The same with the other class given: logit of the label minus that of `against`.

    Args:
        logits: N×C.
        labels: class indices N.
        against: class indices N; `UNTARGETED` (-1) stands for the largest other logit.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    rival = torch.where(against == UNTARGETED, others.argmax(1), against)
    return logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, rival[:, None])[:, 0]


def is_adversarial(margins: Tensor, confidence: float = 0.0) -> Tensor:
    """Where the attack has reached its aim: the margin is negative and at most -confidence (bool, same shape)."""
    return (margins < 0) & (margins <= -confidence)
