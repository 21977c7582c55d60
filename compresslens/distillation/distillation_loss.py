"""Base class of the distillation losses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresslens.distillation.outputs import Outputs
from compresslens.errors import UserError


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if it is float64 already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def constant(tensor: Tensor) -> Tensor:
    """The tensor in full precision and without a graph, for use as a target."""
    tensor = full_precision(tensor.detach())
    return tensor.clone() if tensor.is_inference() else tensor  # backward passes refuse tensors of inference mode


def pool_to_smaller(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool (N, C, H, W) maps so that both have the smaller height and the smaller width of the two."""
    size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))

    def pool(maps: Tensor) -> Tensor:
        return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)

    return pool(ours), pool(theirs)


def require_finite(owner: str, name: str, value: float, *, positive: bool = False) -> float:
    """Return ``value`` if it is finite and ≥ 0 (> 0 with ``positive``).

    Raises:
        UserError: otherwise, naming the owner, the parameter and the value.
    """
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        wanted = "greater than 0" if positive else "0 or greater"
        raise UserError(f"{owner}: {name} is {value}; give a finite number {wanted}.")
    return float(value)


class DistillationLoss(nn.Module):
    """A term that pulls the student towards the teacher.

    Subclasses implement :meth:`compute`; :meth:`forward` calls it with autocast switched off, so that a loss is
    computed in float32 (float64 if its inputs are) however the networks ran. No loss sends gradients into the teacher.

    Args:
        student_layers: names of the tapped student layers that the loss reads; empty if it reads logits only.
        teacher_layers: the teacher's layer for each student layer; None = the same names.
        weight: factor of this loss in the total. The caller applies it; :meth:`forward` does not.

    Attributes:
        needs_teacher_gradient: the teacher's logits must depend on its tapped layers through an autograd graph.
        cacheable: of the teacher only the logits are needed, so they may come from a cache.

    Raises:
        UserError: the weight is negative or not finite, or the two lists of layers differ in length.
    """

    needs_teacher_gradient: bool = False
    cacheable: bool = False

    def __init__(
        self,
        student_layers: Sequence[str] = (),
        teacher_layers: Sequence[str] | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = require_finite(type(self).__name__, "weight", weight)
        self.student_layers: tuple[str, ...] = self._names("student_layers", student_layers)
        self.teacher_layers: tuple[str, ...] = (
            self.student_layers if teacher_layers is None else self._names("teacher_layers", teacher_layers)
        )
        if len(self.student_layers) != len(self.teacher_layers):
            raise UserError(
                f"{type(self).__name__}: {len(self.student_layers)} student_layers but {len(self.teacher_layers)} "
                "teacher_layers; name one teacher layer for each student layer."
            )

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Check the outputs of a dry run and create whatever depends on their shapes; safe to call again.

        Call it before the optimizer is created and before a checkpoint is loaded.

        Raises:
            UserError: the two networks' outputs do not fit each other or this loss.
        """
        for _ in self.paired_features(student, teacher):
            pass

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Scalar loss, not yet multiplied by ``weight``.

        Args:
            student: outputs with an autograd graph.
            teacher: outputs for the same images.
            labels: int64 class indices, N.
        """
        with torch.autocast(student.logits.device.type, enabled=False):
            return self.compute(student, teacher, labels)

    def compute(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """The loss itself; arguments and result as in :meth:`forward`."""
        raise NotImplementedError(f"{type(self).__name__} must implement compute().")

    def paired_features(self, student: Outputs, teacher: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
        """For each pair of layers the student's and the teacher's tensor, full precision, the teacher's detached.

        Raises:
            UserError: a layer was not tapped.
        """
        for student_layer, teacher_layer in zip(self.student_layers, self.teacher_layers, strict=True):
            ours = self._tapped("student", student, student_layer)
            theirs = self._tapped("teacher", teacher, teacher_layer)
            yield full_precision(ours), constant(theirs)

    def paired_logits(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Both logits, (N, C), full precision, the teacher's detached.

        Raises:
            UserError: their shapes differ.
        """
        if student.logits.shape != teacher.logits.shape:
            raise UserError(
                f"{type(self).__name__}: the student's logits are {tuple(student.logits.shape)}, the teacher's "
                f"{tuple(teacher.logits.shape)}; both must have the same classes."
            )
        return full_precision(student.logits), constant(teacher.logits)

    def class_indices(self, labels: Tensor) -> Tensor:
        """The labels as an (N, 1) index.

        Raises:
            UserError: the labels are not class indices (mixed labels, for instance).
        """
        if labels.ndim != 1 or labels.is_floating_point():
            raise UserError(
                f"{type(self).__name__} needs class indices, but the labels are {labels.dtype} of shape "
                f"{tuple(labels.shape)}; switch mixup and cutmix off, or use LogitKDLoss."
            )
        return labels.long()[:, None]

    def require_layers(self) -> None:
        """For losses that read layers.

        Raises:
            UserError: no layer is named.
        """
        if not self.student_layers:
            raise UserError(f"{type(self).__name__}: student_layers is empty; name at least one layer.")

    def require_maps(self, student: Outputs, teacher: Outputs) -> None:
        """For losses that read spatial maps.

        Raises:
            UserError: a layer was not tapped, or does not give (N, C, H, W) maps.
        """
        for pair, names in zip(
            self.paired_features(student, teacher),
            zip(self.student_layers, self.teacher_layers, strict=True),
            strict=True,
        ):
            for tensor, name in zip(pair, names, strict=True):
                if tensor.ndim != 4:
                    raise UserError(
                        f"{type(self).__name__}: layer {name!r} has shape {tuple(tensor.shape)}; "
                        "choose one that gives (N, C, H, W) maps."
                    )

    def extra_repr(self) -> str:
        """Weight and layers, for ``repr``."""
        pairs = [s if s == t else f"{s}→{t}" for s, t in zip(self.student_layers, self.teacher_layers, strict=True)]
        return ", ".join([f"weight={self.weight:g}", *pairs])

    def _names(self, parameter: str, names: Sequence[str]) -> tuple[str, ...]:
        if isinstance(names, str):  # a string is a sequence of letters
            raise UserError(f"{type(self).__name__}: {parameter} is the string {names!r}; give a list: [{names}].")
        return tuple(names)

    def _tapped(self, who: str, outputs: Outputs, layer: str) -> Tensor:
        if layer not in outputs.features:
            tapped = ", ".join(outputs.features) or "none"
            raise UserError(
                f"{type(self).__name__}: layer {layer!r} of the {who} was not tapped (tapped: {tapped}); "
                f"name an existing layer in {who}_layers."
            )
        return outputs.features[layer]
