"""Class-activation matching: the student is kept looking where the teacher looks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from compresslens.distillation.distillation_loss import DistillationLoss, full_precision
from compresslens.distillation.outputs import Outputs
from compresslens.errors import UserError


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) maps at another size: average pooling to shrink, bilinear interpolation to enlarge."""
    maps = F.adaptive_avg_pool2d(maps, (min(maps.shape[1], size[0]), min(maps.shape[2], size[1])))
    if maps.shape[1:] != size:
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return maps


class ClassActivationLoss(DistillationLoss):
    """Squared L2 distance between the two networks' normalized Grad-CAMs of the label's class.

    The map of a layer A is ReLU(Σ_k alpha_k A_k), alpha_k = the spatial mean of the gradient of the label's logit with
    respect to A_k (Selvaraju et al., "Grad-CAM", ICCV 2017, equations 1-2). Each map is scaled to unit L2 norm, the
    teacher's after resizing to the student's size; the squared distance, in [0, 2], is averaged over the batch and
    summed over the pairs of layers. In the spirit of Park, Yang, Hwang & Yang, "Attribution Preservation in Network
    Compression for Reliable Network Interpretation", NeurIPS 2020, who match sensitivity-weighted maps; here the class
    is the label, and alpha is a constant: the student learns through its activations, without second-order gradients.

    A sample with an all-zero map on either side counts 0 and sends no gradient. If batch normalization in training mode
    follows the layer, the student's alpha also carries the (small) influence through the batch's statistics.

    The student's outputs must have an autograd graph, so this loss does not run under ``torch.no_grad``. The teacher's
    logits must depend on its tapped layers: run it under ``feature_taps(teacher, names, start_graph=True)``. Its
    parameters may be frozen, and get no gradient either way.

    Args:
        student_layers: layers that give (N, C, H, W) maps.
        teacher_layers: None = the same names.
        weight: factor in the total loss.

    Raises:
        UserError: the numbers of layers differ or are 0, or the weight is negative.
    """

    needs_teacher_gradient = True

    def __init__(
        self,
        student_layers: Sequence[str] = ("layer4",),
        teacher_layers: Sequence[str] | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(student_layers, teacher_layers, weight)
        self.require_layers()

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Check that both networks have the same classes and the layers give maps."""
        self.paired_logits(student, teacher)
        self.require_maps(student, teacher)

    def compute(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Scalar in [0, 2·pairs]."""
        self.paired_logits(student, teacher)
        index = self.class_indices(labels)
        student_maps = self._maps("student", student, self.student_layers, index)
        teacher_maps = self._maps("teacher", teacher, self.teacher_layers, index)
        total = student.logits.new_zeros(())
        for ours, theirs in zip(student_maps, teacher_maps, strict=True):
            theirs = resize_maps(theirs.detach(), (ours.shape[1], ours.shape[2]))
            ours, theirs = self._unit(ours), self._unit(theirs)
            both = ours.any(1) & theirs.any(1)
            total = total + ((ours - theirs).square().sum(1) * both).mean()
        return total

    def _maps(self, who: str, outputs: Outputs, layers: tuple[str, ...], index: Tensor) -> list[Tensor]:
        """Grad-CAM of each layer before normalization, (N, H, W), with a graph through the activations only."""
        activations = [self._tapped(who, outputs, layer) for layer in layers]
        gradients: Sequence[Tensor | None] = [None] * len(layers)
        if outputs.logits.requires_grad and all(a.requires_grad for a in activations):
            score = outputs.logits.gather(1, index).sum()
            # The graph is still needed: by the student's backward pass, and by other losses that read the teacher.
            gradients = torch.autograd.grad(score, activations, retain_graph=True, allow_unused=True)
        maps = []
        for layer, activation, gradient in zip(layers, activations, gradients, strict=True):
            if gradient is None:
                raise UserError(
                    f"ClassActivationLoss: the {who}'s logits do not depend on its layer {layer!r} through an autograd "
                    "graph; run the student with gradients enabled, and the teacher under "
                    "feature_taps(..., start_graph=True)."
                )
            alpha = full_precision(gradient).mean((2, 3))
            maps.append(torch.einsum("nchw,nc->nhw", full_precision(activation), alpha).relu())
        return maps

    @staticmethod
    def _unit(maps: Tensor) -> Tensor:
        """Flattened to (N, H·W) and scaled to unit L2 norm; all-zero maps stay zero."""
        flat = maps.flatten(1)
        # First to a maximum of 1: gradients of logits can be so small that squares vanish in float32. The scale
        # cancels, so treating it as a constant leaves the gradient as it is.
        peak = flat.detach().amax(1, keepdim=True)
        return F.normalize(flat / peak.where(peak > 0, 1), dim=1)
