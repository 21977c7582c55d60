"""What the methods that compress one network have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn

from compresslens.distillation import DistillationLoss
from compresslens.errors import UserError
from compresslens.networks.changes import Change, changes_of
from lightning_modules.distillation import Distillation

T = TypeVar("T")


class Compression(Distillation):
    """Compresses `network` and trains what is left of it; the network as it was is the reference.

    A subclass defines :meth:`compress`, which runs once, before the optimizer is made. A checkpoint brings what was
    changed in the structure, so that nothing has to be decided anew when a run is continued or evaluated.

    Args:
        network: the trained network to compress, e.g. `create_network(..., weights="runs/baseline_resnet18/latest")`.
        teacher: the network it is held against and, where there are losses, distilled from; None: a frozen copy of
            `network` as it is before compression.
        losses: as in `Distillation`; none by default, so that training is by the labels alone.
        label_weight: weight of the cross-entropy with the labels.
        options: those of `Distillation`.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module | None = None,
        losses: list[DistillationLoss] | None = None,
        label_weight: float = 1.0,
        **options: Any,
    ) -> None:
        original = copy.deepcopy(network)  # before the reference is frozen
        reference = copy.deepcopy(network) if teacher is None else teacher
        super().__init__(network, reference, losses or [], label_weight, **options)
        self._original = [original]  # a list hides it from checkpoints, the optimizer and DDP
        self._compressed = False

    @property
    def compression_finished(self) -> bool:
        """Whether `model` is as small as it is going to be: before that, no checkpoint is the best one."""
        return True

    def compress(self) -> None:
        """Changes `self.model`; the trainer, the data and the device (`self.trainer.strategy.root_device`) are known.

        All ranks must end with the same structure.
        """
        raise NotImplementedError

    def on_rank_zero(self, decide: Callable[[], T]) -> T:
        """What rank zero decides, on all ranks; a UserError there is raised on all, too."""
        answer: T | None = None
        error: str | None = None
        if self.global_rank == 0:
            try:
                answer = decide()
            except UserError as problem:
                error = str(problem)
        answer, error = self.trainer.strategy.broadcast((answer, error))
        if error is not None:
            raise UserError(error)
        return cast(T, answer)

    def configure_model(self) -> None:
        """Compresses when a fit begins (one that is continued is put right by its checkpoint afterwards)."""
        if self.trainer.state.fn == "fit" and not self._compressed:
            self.compress()
        self._compressed = True
        super().configure_model()

    def rebuild(self, changes: list[Change]) -> None:
        """Gives the network the structure that the checkpoint's had, from the original one if need be."""
        own = changes_of(self.model)
        if changes[: len(own)] != own:
            self.model = copy.deepcopy(self._original[0]).to(self.device)
        super().rebuild(changes)
        self._compressed = True
