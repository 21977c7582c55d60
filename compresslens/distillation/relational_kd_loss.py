"""Relational knowledge distillation: distances and angles between samples (Park et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from compresslens.distillation.distillation_loss import DistillationLoss, require_finite
from compresslens.distillation.outputs import Outputs


def relations(features: Tensor) -> tuple[Tensor, Tensor]:
    """Relative distances of all pairs and cosines of the angles of all triplets.

    Args:
        features: one vector per sample, (N, D).

    Returns:
        (N, N) distances divided by their mean over the pairs i ≠ j (0 if all samples coincide), and (N, N, N) cosines:
        [j, i, k] is the angle at sample j between samples i and k; 0 where i or k coincides with j.
    """
    count = len(features)
    # Not by matrix product: its rounding turns coinciding samples into tiny distances of any size, and the gradient of
    # the angle grows with 1 / distance. The gradient of cdist at 0 is 0.
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distance.sum() / max(count * (count - 1), 1)
    relative = distance / torch.where(mean > 0, mean, 1)
    # Law of cosines: N³ operations instead of N³·D for the products of differences.
    square = relative.square()
    inverse = 1 / relative.where(relative > 0, torch.inf)  # 0 where samples coincide, and so is its gradient
    cosine = (square[:, :, None] + square[:, None, :] - square[None]) * (inverse[:, :, None] * inverse[:, None, :] / 2)
    return relative, cosine


class RelationalKDLoss(DistillationLoss):
    """distance_weight · Huber(relative distances) + angle_weight · Huber(cosines), each averaged over all entries.

    Park, Kim, Lu & Cho, "Relational Knowledge Distillation", CVPR 2019, equations 3-8. The features may differ in
    length between student and teacher: only the relations inside the batch (of one process) are compared. As in the
    authors' code, the Huber terms are averaged over all N² pairs and N³ triplets, degenerate ones (0 on both sides)
    included; as in equation 4, and unlike the code, coinciding samples count in the mean distance. Where samples
    coincide, the gradient of their distance and angle is 0. A batch of one gives 0. Memory grows with N³.

    Args:
        student_layers: "features" = the penultimate features; maps are flattened.
        teacher_layers: None = the same names.
        distance_weight: lambda of the distance-wise loss, ≥ 0.
        angle_weight: lambda of the angle-wise loss, ≥ 0.
        weight: factor in the total loss.

    Raises:
        ValueError: the numbers of layers differ or are 0, or a weight is negative.
    """

    def __init__(
        self,
        student_layers: Sequence[str] = ("features",),
        teacher_layers: Sequence[str] | None = None,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(student_layers, teacher_layers, weight)
        self.require_layers()
        self.distance_weight = require_finite(type(self).__name__, "distance_weight", distance_weight)
        self.angle_weight = require_finite(type(self).__name__, "angle_weight", angle_weight)

    def compute(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Scalar ≥ 0; the labels are not used."""
        total = student.logits.new_zeros(())
        for ours, theirs in self.paired_features(student, teacher):
            distance, cosine = relations(ours.flatten(1))
            teacher_distance, teacher_cosine = relations(theirs.flatten(1))
            total = total + self.distance_weight * F.smooth_l1_loss(distance, teacher_distance)
            total = total + self.angle_weight * F.smooth_l1_loss(cosine, teacher_cosine)
        return total
