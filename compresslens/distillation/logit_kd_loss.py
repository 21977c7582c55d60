"""Knowledge distillation on softened logits (Hinton et al. 2015)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from compresslens.distillation.distillation_loss import DistillationLoss, require_finite
from compresslens.distillation.outputs import Outputs


class LogitKDLoss(DistillationLoss):
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), averaged over the batch.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. The factor T² keeps
    the size of the gradient independent of T. The paper minimizes the cross-entropy, which differs from the KL
    divergence by the teacher's entropy, a constant: here 0 means that the two agree.

    Args:
        temperature: T > 0; larger values weigh the small probabilities more.
        weight: factor in the total loss.

    Raises:
        ValueError: the temperature is not positive, or the weight is negative.
    """

    cacheable = True

    def __init__(self, temperature: float = 4.0, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.temperature = require_finite(type(self).__name__, "temperature", temperature, positive=True)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Check that both networks have the same classes."""
        self.paired_logits(student, teacher)

    def compute(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Scalar ≥ 0; the labels are not used."""
        ours, theirs = self.paired_logits(student, teacher)
        log_student = F.log_softmax(ours / self.temperature, dim=1)
        log_teacher = F.log_softmax(theirs / self.temperature, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence
