"""Teacher and student: the student learns from the labels and from what a frozen teacher says."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from compresslens.distillation import DistillationLoss, Outputs
from compresslens.distillation.teacher_cache import TeacherCache
from compresslens.errors import UserError
from compresslens.networks import feature_taps
from lightning_modules.classifier import ImageClassifier

logger = logging.getLogger(__name__)


class Distillation(ImageClassifier):
    """Trains `network` (the student) with cross-entropy and a list of weighted losses against a teacher.

    The total is `label_weight * cross_entropy + sum(loss.weight * loss)`. The teacher is frozen, in eval mode, and
    stands neither in checkpoints nor in the optimizer. Adapters of the losses are trained with the student but are no
    part of `model`.

    Where every training image looks the same in each epoch and only the teacher's logits are needed, they are computed
    once, before the first epoch, and kept; otherwise the teacher runs on each batch, without autograd unless a loss
    asks for it.

    Args:
        network: the student.
        teacher: a trained network with the same classes, usually another architecture.
        losses: objects of `compresslens.distillation`, or of your own subclass of `DistillationLoss`.
        label_weight: weight of the cross-entropy with the labels.
        cache_limit: largest cache of the teacher's logits, bytes; where more is needed the teacher runs on each batch.
        options: those of `ImageClassifier`.
    """

    losses: Any

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        losses: list[DistillationLoss],
        label_weight: float = 1.0,
        cache_limit: int = 2**30,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        if label_weight < 0:
            raise UserError(f"label_weight is {label_weight}; it must not be negative")
        if label_weight == 0 and not any(loss.weight for loss in losses):
            raise UserError("all weights are 0: there is nothing to learn; set label_weight or the weight of a loss")
        self.set_reference(teacher)
        # A loss that counts for nothing would cost time, and its adapters would be parameters without a gradient.
        losses = [loss for loss in losses if loss.weight]
        self.losses = nn.ModuleList(losses)
        self.label_weight = label_weight
        self.cache_limit = cache_limit
        self._cache: TeacherCache | None = None
        self._student_layers = sorted({layer for loss in losses for layer in loss.student_layers})
        self._teacher_layers = sorted({layer for loss in losses for layer in loss.teacher_layers})
        self._teacher_gradient = any(loss.needs_teacher_gradient for loss in losses)

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher; also the reference."""
        assert self.reference is not None
        return self.reference

    def configure_model(self) -> None:
        """Creates the adapters of the losses, which depend on the shapes of the layers.

        Here and not in `setup`, so that callbacks which copy the module (moving averages) can ask for it before.
        """
        self._build_losses(self._data.image_size)

    def on_fit_start(self) -> None:
        """Fills the cache of the teacher's logits where that is possible."""
        data, trainer = self._data, cast(Any, self.trainer)
        self._cache = None
        repeatable = getattr(data, "deterministic_training_images", False) and self._mixup is None
        repeatable = repeatable and not trainer.overfit_batches  # then Lightning chooses the images
        if not repeatable or not self.losses or not all(loss.cacheable for loss in self.losses):
            return
        classes = data.num_classes
        if len(data.train_samples) * classes * 4 > self.cache_limit:
            logger.warning("the teacher's logits would exceed cache_limit: the teacher runs on every batch")
            return
        with trainer.precision_plugin.forward_context():
            self._cache = TeacherCache.fill(
                self.teacher, data.train_samples, classes, self.device, data.num_workers, trainer.is_global_zero
            )

    def training_loss(self, images: Tensor, labels: Tensor, targets: Tensor, batch_idx: int) -> Tensor:
        """Cross-entropy with the labels and the weighted losses against the teacher."""
        if not self.losses:
            return self.label_weight * super().training_loss(images, labels, targets, batch_idx)
        teacher = self._teacher_outputs(images, batch_idx)
        with feature_taps(self.model, self._student_layers) as features:
            logits = self.model(images)
        student = Outputs(logits, features)
        total = self.label_weight * self.supervised_loss(logits, targets)
        for loss in self.losses:
            total = total + loss.weight * loss(student, teacher, labels)
        return total

    def _teacher_outputs(self, images: Tensor, batch_idx: int) -> Outputs:
        """What the teacher says: from the cache, or from a forward pass without autograd."""
        if self._cache is not None:
            indices = self._data.training_indices(batch_idx)
            return Outputs(self._cache[indices].to(self.device))
        teacher = self.teacher
        with ExitStack() as stack:
            if not self._teacher_gradient:
                stack.enter_context(torch.no_grad())
            features = stack.enter_context(
                feature_taps(teacher, self._teacher_layers, start_graph=self._teacher_gradient)
            )
            logits = teacher(images)
        return Outputs(logits, features)

    def _build_losses(self, image_size: int) -> None:
        """Runs both networks on two grey images, so that the losses can check shapes and create adapters."""
        weight = next(self.model.parameters())  # not on the module's device yet
        images = torch.full((2, 3, image_size, image_size), 0.5, device=weight.device, dtype=weight.dtype)
        teacher = self._frozen_reference[0].eval().to(weight)
        modes: list[tuple[Any, bool]] = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        with torch.no_grad():
            with feature_taps(self.model, self._student_layers) as student_features:
                student_logits = self.model(images)
            with feature_taps(teacher, self._teacher_layers) as teacher_features:
                teacher_logits = teacher(images)
        for module, training in modes:
            module.training = training
        for loss in self.losses:
            loss.build(Outputs(student_logits, student_features), Outputs(teacher_logits, teacher_features))
