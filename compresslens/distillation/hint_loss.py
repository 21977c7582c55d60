"""FitNets hints: the student's layer learns to predict the teacher's (Romero et al., ICLR 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from compresslens.distillation.distillation_loss import DistillationLoss, full_precision, pool_to_smaller
from compresslens.distillation.outputs import Outputs
from compresslens.errors import UserError


def _as_maps(tensor: Tensor, layer: str) -> Tensor:
    """(N, C, H, W) maps as they are, (N, D) vectors as (N, D, 1, 1)."""
    if tensor.ndim == 2:
        return tensor[:, :, None, None]
    if tensor.ndim != 4:
        raise UserError(
            f"HintLoss: layer {layer!r} has shape {tuple(tensor.shape)}; "
            "choose one that gives (N, C, H, W) maps or (N, D) vectors."
        )
    return tensor


class HintLoss(DistillationLoss):
    """Mean squared difference between the student's layer, seen through an adapter, and the teacher's layer.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3. Summed over the pairs of layers. The
    differences from the paper: the mean over all elements instead of half the sum, so that one weight fits any layer;
    a 1x1 regressor, and where the maps differ in size, the larger one is average-pooled to the smaller; the hint
    acts together with the other losses instead of in a stage of its own.

    An adapter (1x1 convolution with bias) exists where the two layers differ in channels. It belongs to this loss, is
    trained with the student, and never becomes part of the student.

    Args:
        student_layers: guided layers; (N, C, H, W) maps or (N, D) vectors.
        teacher_layers: hint layers; None = the same names.
        weight: factor in the total loss.

    Attributes:
        adapters: one module per pair of layers, after :meth:`build`; Identity where the channels agree.

    Raises:
        UserError: the numbers of layers differ or are 0, or the weight is negative.
    """

    def __init__(
        self,
        student_layers: Sequence[str] = ("layer3",),
        teacher_layers: Sequence[str] | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(student_layers, teacher_layers, weight)
        self.require_layers()
        self.adapters = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Create the adapters; ones that exist and fit are kept with what they have learned."""
        adapters: list[nn.Module] = []
        for number, (ours, theirs) in enumerate(self._paired_maps(student, teacher)):
            channels = ours.shape[1], theirs.shape[1]
            old = self.adapters[number] if number < len(self.adapters) else None
            if channels[0] == channels[1]:
                adapters.append(nn.Identity())
            elif isinstance(old, nn.Conv2d) and (old.in_channels, old.out_channels) == channels:
                adapters.append(old)
            else:
                adapters.append(nn.Conv2d(*channels, kernel_size=1, device=ours.device, dtype=ours.dtype))
        self.adapters = nn.ModuleList(adapters)

    def compute(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Scalar ≥ 0; the labels are not used."""
        if len(self.adapters) != len(self.student_layers):
            raise UserError("HintLoss: call build() with the outputs of a dry run before the first step.")
        total = student.logits.new_zeros(())
        for adapter, (ours, theirs) in zip(self.adapters, self._paired_maps(student, teacher), strict=True):
            # Pooling and a 1x1 convolution commute; pooling first is the cheaper order.
            ours, theirs = pool_to_smaller(ours, theirs)
            if isinstance(adapter, nn.Conv2d):
                # Not adapter(ours): its parameters are bfloat16 if the user trains in pure bfloat16.
                weight, bias = (full_precision(parameter) for parameter in adapter.parameters())
                ours = F.conv2d(ours, weight, bias)
            total = total + F.mse_loss(ours, theirs)
        return total

    def _paired_maps(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        pairs = zip(self.student_layers, self.teacher_layers, self.paired_features(student, teacher), strict=True)
        return [(_as_maps(ours, mine), _as_maps(theirs, other)) for mine, other, (ours, theirs) in pairs]
