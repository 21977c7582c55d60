"""Decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compresslens.distillation.distillation_loss import DistillationLoss, require_finite
from compresslens.distillation.outputs import Outputs
from compresslens.errors import UserError


def decoupled_kl(student: Tensor, teacher: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split KL(softmax(teacher) ‖ softmax(student)) into a part about the label's class and a part about the others.

    Zhao et al. 2022, equations 3-6: KL = TCKD + (1 - p_t)·NCKD; p_t is the teacher's probability of the label's class.

    Args:
        student: logits already divided by the temperature, (N, C), C ≥ 2.
        teacher: likewise.
        index: the label's class, (N, 1).

    Returns:
        TCKD ≥ 0, NCKD ≥ 0 and 1 - p_t, each of shape N.
    """
    is_label = torch.arange(student.shape[1], device=student.device) == index

    def split(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The authors subtract 1000 from the label's logit to leave it out; that fails for logits of that size, so mask.
        log_p = F.log_softmax(logits, dim=1)
        log_label = log_p.gather(1, index)[:, 0]
        log_others = log_p.masked_fill(is_label, -torch.inf).logsumexp(1)
        log_among_others = F.log_softmax(logits.masked_fill(is_label, -torch.inf), dim=1).masked_fill(is_label, 0)
        return log_label, log_others, log_among_others

    s_label, s_others, s_among = split(student)
    t_label, t_others, t_among = split(teacher)
    target_class = t_label.exp() * (t_label - s_label) + t_others.exp() * (t_others - s_others)
    other_classes = (t_among.exp() * (t_among - s_among)).sum(1)  # the label's own entry is 1·(0 - 0)
    return target_class, other_classes, t_others.exp()


class DecoupledKDLoss(DistillationLoss):
    """T² · (alpha · TCKD + beta · NCKD), averaged over the batch.

    Zhao, Cui, Song, Qiu & Liang, "Decoupled Knowledge Distillation", CVPR 2022, equation 7. TCKD compares how sure the
    two are of the label's class, NCKD how they rank the other classes. In ``LogitKDLoss`` NCKD is weighed by 1 - p_t,
    which vanishes where the teacher is sure; here by the constant beta.

    The authors multiply the loss by min(epoch / 20, 1) at the start of training; here it is constant.

    Args:
        temperature: T > 0.
        alpha: weight of TCKD, ≥ 0.
        beta: weight of NCKD, ≥ 0. A sure teacher bears a larger beta.
        weight: factor in the total loss.

    Raises:
        UserError: a parameter is out of range.
    """

    cacheable = True

    def __init__(self, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.temperature = require_finite(type(self).__name__, "temperature", temperature, positive=True)
        self.alpha = require_finite(type(self).__name__, "alpha", alpha)
        self.beta = require_finite(type(self).__name__, "beta", beta)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Check that both networks have the same two or more classes."""
        ours, _ = self.paired_logits(student, teacher)
        if ours.shape[1] < 2:
            raise UserError("DecoupledKDLoss needs two or more classes; a single class has no others to compare.")

    def compute(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Scalar ≥ 0."""
        ours, theirs = self.paired_logits(student, teacher)
        index = self.class_indices(labels)
        target_class, other_classes, _ = decoupled_kl(ours / self.temperature, theirs / self.temperature, index)
        return self.temperature**2 * (self.alpha * target_class + self.beta * other_classes).mean()
