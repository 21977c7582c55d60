"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from compresslens.distillation.distillation_loss import DistillationLoss, pool_to_smaller, require_finite
from compresslens.distillation.outputs import Outputs
from compresslens.errors import UserError


def attention(maps: Tensor, power: float = 2.0) -> Tensor:
    """Spatial attention: the mean over channels of |A|^power, flattened and scaled to unit L2 norm per sample.

    Args:
        maps: activations, (N, C, H, W).
        power: p ≥ 1; larger values keep to the strongest activations.

    Returns:
        (N, H·W), in [0, 1]; a sample whose activations are all 0 gives zeros.
    """
    return F.normalize(maps.abs().pow(power).mean(1).flatten(1), dim=1)


class AttentionTransferLoss(DistillationLoss):
    """Squared difference between the networks' normalized spatial attention maps, summed over the pairs of layers.

    Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.1. As in the authors' code
    (github.com/szagoruyko/attention-transfer, utils.py), the difference is squared and averaged over the batch and the
    positions; equation 2 prints the norm instead, whose gradient is undefined where the maps agree. One difference from
    both: if the maps differ in size, the larger activations are average-pooled to the smaller size first.

    Args:
        student_layers: layers that give (N, C, H, W) maps; the number of channels may differ from the teacher's.
        teacher_layers: None = the same names.
        power: p ≥ 1 in |A|^p.
        weight: the paper's beta. Squared differences of unit maps averaged over positions are tiny, hence its 1000.

    Raises:
        UserError: the numbers of layers differ or are 0, the power is below 1, or the weight is negative.
    """

    def __init__(
        self,
        student_layers: Sequence[str] = ("layer1", "layer2", "layer3", "layer4"),
        teacher_layers: Sequence[str] | None = None,
        power: float = 2.0,
        weight: float = 1000.0,
    ) -> None:
        super().__init__(student_layers, teacher_layers, weight)
        self.require_layers()
        self.power = require_finite(type(self).__name__, "power", power)
        if power < 1:
            raise UserError(
                f"AttentionTransferLoss: power is {power}; give 1 or more (below 1 the gradient is infinite)."
            )

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Check that the layers give maps."""
        self.require_maps(student, teacher)

    def compute(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Scalar ≥ 0; the labels are not used."""
        total = student.logits.new_zeros(())
        for ours, theirs in self.paired_features(student, teacher):
            ours, theirs = pool_to_smaller(ours, theirs)
            total = total + F.mse_loss(attention(ours, self.power), attention(theirs, self.power))
        return total
