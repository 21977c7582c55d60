"""Supervised training of an image classifier; also what the other methods build on."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from compresslens.errors import UserError
from compresslens.networks.changes import Change, apply_changes, changes_of
from compresslens.training import (
    build_scheduler,
    dry_run,
    newest_checkpoint,
    optimizer_steps,
    parameter_groups,
    step_seed,
)
from datamodules.samplers import evaluation_indices

CALIBRATION_BINS = 15
NEVER = sys.maxsize


class ImageClassifier(pl.LightningModule):
    """Trains a network with cross-entropy.

    Args:
        network: maps pixels N×3×H×W in [0, 1] to logits N×C, e.g. `compresslens.networks.create_network`.
        optimizer: any `torch.optim` optimizer, without its parameters.
        scheduler: any learning rate scheduler; one that needs the number of steps (`OneCycleLR`) is told.
        scheduler_interval: whether the scheduler moves on after every "step" or "epoch" (`ReduceLROnPlateau`: always
            after a validation).
        label_smoothing: share of the target spread over all classes, in [0, 1).
        mixup_alpha: mixup (Zhang et al. 2018) with Beta(alpha, alpha); 0 switches it off. From timm.
        cutmix_alpha: CutMix (Yun et al. 2019), likewise.
        decay_norm_and_bias: whether weight decay also pulls on biases and normalization layers.
        channels_last: keep images and weights in channels-last memory format, usually faster.
        seed: for everything random within a training step; (seed, rank, step) fixes it, so a resumed run repeats it.

    Attributes:
        model: the network.
        reference: the network that it is held against (frozen), or None.
    """

    metrics: Any
    mean_loss: Any

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.SGD,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        decay_norm_and_bias: bool = True,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")
        if mixup_alpha < 0 or cutmix_alpha < 0:
            raise UserError("mixup_alpha and cutmix_alpha must not be negative")
        self.model = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.label_smoothing = label_smoothing
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.decay_norm_and_bias = decay_norm_and_bias
        self.seed = seed
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        self._frozen_reference: list[nn.Module] = []  # a list hides it from checkpoints, the optimizer and DDP
        self._mixup: Any = None

    @property
    def reference(self) -> nn.Module | None:
        """The network that `model` came from or is compared with: frozen, in eval mode, on the module's device."""
        if not self._frozen_reference:
            return None
        network = self._frozen_reference[0]
        like, device, dtype = next(network.parameters(), None), self.device, cast(torch.dtype, self.dtype)
        if network.training or like is None or (like.device, like.dtype) != (device, dtype):
            with torch.inference_mode(False):  # what is moved in inference mode has no gradients ever after
                network.to(device, dtype).eval()  # takes milliseconds even where there is nothing to do
        return network

    def set_reference(self, network: nn.Module) -> None:
        """Freezes a network and makes it the reference (no property setter: `nn.Module` would register the network)."""
        self._frozen_reference = [network.requires_grad_(False).eval().to(memory_format=self.memory_format)]

    @property
    def _data(self) -> Any:
        trainer: Any = self.trainer
        return trainer.datamodule

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×C of pixels N×3×H×W in [0, 1]."""
        return self.model(images.contiguous(memory_format=self.memory_format))

    # Set-up ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Checks that network and data agree on the classes, and creates the metrics for them."""
        classes = getattr(self._data, "num_classes", None)
        if classes is None:
            raise UserError(f"{type(self._data).__name__} has no num_classes; the metrics need it")
        self._check_classes("network", self.model, classes)
        if self.reference is not None:
            self._check_classes("reference network", self.reference, classes)
        if not hasattr(self, "metrics"):
            self.metrics = nn.ModuleDict({part: classification_metrics(classes) for part in ("val", "test")})
            self.mean_loss = nn.ModuleDict({part: MeanMetric() for part in ("val", "test")})
        if self.mixup_alpha or self.cutmix_alpha:
            from timm.data import Mixup

            if getattr(self._data, "batch_size", 2) % 2:
                raise UserError("mixup and CutMix pair the images of a batch: make data.batch_size an even number")
            self._mixup = Mixup(self.mixup_alpha, self.cutmix_alpha, num_classes=classes, label_smoothing=0.0)

    def configure_optimizers(self) -> Any:
        """The optimizer of the parameters that are trained, and the scheduler."""
        try:
            optimizer = self.optimizer(parameter_groups(self, self.decay_norm_and_bias))
            if self.scheduler is None:
                return optimizer
            scheduler = build_scheduler(self.scheduler, optimizer, self._scheduler_steps)
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer or scheduler: {error}") from error
        options = {"scheduler": scheduler, "interval": self.scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            # Lightning would move it on after the checkpoint at the end of an epoch; a resumed run would lack that.
            options |= {"monitor": getattr(scheduler, "monitor", "val/loss"), "frequency": NEVER}
        return {"optimizer": optimizer, "lr_scheduler": options}

    def on_validation_end(self) -> None:
        """Shows the metric to a scheduler that waits for a plateau."""
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                metrics = self.trainer.callback_metrics
                if config.monitor not in metrics:
                    known = ", ".join(sorted(metrics))
                    raise UserError(f"there is no metric {config.monitor!r} for the scheduler; there are: {known}")
                scheduler: Any = config.scheduler
                scheduler.step(float(metrics[config.monitor]))

    def _scheduler_steps(self) -> int:
        """How often the scheduler moves on in the whole training.

        Not by `trainer.estimated_stepping_batches`: it starts the training loader before a checkpoint that is being
        continued has said where the loader is to begin.
        """
        trainer: Any = self.trainer
        if self.scheduler_interval == "epoch" and trainer.max_epochs > 0:
            return trainer.max_epochs
        batches, per_step = len(self._data.train_dataloader()), trainer.accumulate_grad_batches
        steps = self.steps_in(trainer.max_epochs, trainer.max_steps)
        return steps if self.scheduler_interval == "step" else math.ceil(steps * per_step / batches)

    def steps_in(self, epochs: int, most: int = -1) -> int:
        """Optimizer steps of that many epochs of this fit, and at most `most` (-1: no limit)."""
        trainer: Any = self.trainer
        batches, per_step = len(self._data.train_dataloader()), trainer.accumulate_grad_batches
        return optimizer_steps(batches, trainer.limit_train_batches, per_step, epochs, most)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Names the architecture and what was changed in it, so that it can be rebuilt."""
        checkpoint["architecture"] = self._architecture()
        checkpoint["changes"] = changes_of(self.model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gives the network the checkpoint's structure, and leaves out what only matters for continuing a fit.

        Raises:
            UserError: the checkpoint is another architecture's.
        """
        self.rebuild(checkpoint.get("changes", []))
        saved, own = checkpoint.get("architecture"), self._architecture()
        names = {f"model.{name}" for name in self.model.state_dict()}
        if saved not in (None, own) and not names <= checkpoint["state_dict"].keys():
            raise UserError(f"the checkpoint holds a {saved}, but the config asks for a {own}")
        if self.trainer.state.fn == "fit":
            return
        checkpoint.pop(type(self._data).__qualname__, None)  # its place in the training data
        if "current_model_state" in checkpoint:
            # Lightning's WeightAveraging, if it has seen a fit, would put the weights that were not averaged back.
            checkpoint["current_model_state"] = checkpoint["state_dict"]

    def rebuild(self, changes: list[Change]) -> None:
        """Makes the changes of structure that the network of a checkpoint had undergone, as far as they are missing.

        Raises:
            UserError: the network has undergone others.
        """
        own = changes_of(self.model)
        if changes[: len(own)] != own:
            raise UserError(
                f"the checkpoint's {self._architecture()} was compressed otherwise than the one of the config"
            )
        apply_changes(self.model, changes[len(own) :])

    # Training --------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds what is random within this step, so that it does not depend on what happened before."""
        seed = step_seed(self.seed, self.global_rank, self.trainer.current_epoch, batch_idx)
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch.

        Raises:
            UserError: the loss is not finite; names the step and the last checkpoint.
        """
        images, labels = batch[0].contiguous(memory_format=self.memory_format), batch[1]
        targets = labels
        if self._mixup is not None:
            images, targets = self._mixup(images, labels)
        loss = self.training_loss(images, labels, targets, batch_idx)
        if not torch.isfinite(loss):
            folder = Path(self.trainer.default_root_dir) / "checkpoints"
            raise UserError(
                f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}, batch {batch_idx})"
                f"; last good checkpoint: {newest_checkpoint(folder)}; lower the learning rate"
            )
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def training_loss(self, images: Tensor, labels: Tensor, targets: Tensor, batch_idx: int) -> Tensor:
        """What is minimized.

        Args:
            images: N×3×H×W, after mixup if that is on.
            labels: class indices N of the images before mixup.
            targets: the labels, or the mixed class distributions N×C.
            batch_idx: number of the batch within the epoch.
        """
        return self.supervised_loss(self.model(images), targets)

    def supervised_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in float32 with label smoothing."""
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)

    # Evaluation --------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Logits of a batch, counted in the validation metrics."""
        return self._evaluation_step("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Logits of a batch, counted in the test metrics."""
        return self._evaluation_step("test", batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities N×C."""
        return self(batch[0]).float().softmax(1)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics of all ranks."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics of all ranks."""
        self._log_metrics("test")

    def _evaluation_step(self, part: str, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch[0], batch[1]
        logits = self(images).float()
        real = self.real_samples(part, batch_idx, len(images)).to(logits.device)
        if real.any():
            self.metrics[part].update(logits[real], labels[real])
            self.mean_loss[part].update(F.cross_entropy(logits[real], labels[real], reduction="none"))
        return {"logits": logits, "labels": labels}

    def real_samples(self, part: str, batch_idx: int, count: int) -> Tensor:
        """Which samples of an evaluation batch are not there just to fill up this rank's last batches (bool, N)."""
        loader: Any = self.trainer.val_dataloaders if part == "val" else self.trainer.test_dataloaders
        _, real = evaluation_indices(loader, batch_idx, loader.batch_size, self.global_rank, self.trainer.world_size)
        return real[:count]

    def _log_metrics(self, part: str) -> None:
        values = {f"{part}/{name}": value for name, value in self.metrics[part].compute().items()}
        self.log_dict(
            {**values, f"{part}/loss": self.mean_loss[part].compute()}, prog_bar=part == "val", sync_dist=False
        )
        self.metrics[part].reset()
        self.mean_loss[part].reset()

    def _architecture(self) -> str:
        return getattr(self.model, "architecture", type(self.model).__name__)

    def _check_classes(self, what: str, network: nn.Module, classes: int) -> None:
        """Raises UserError unless the network gives one logit per class of the data."""
        logits = dry_run(network, self._data.image_size)
        if logits.shape[1:] != (classes,):
            raise UserError(
                f"the {what} gives {logits.shape[1]} logits but the data has {classes} classes; set its num_classes"
            )


def classification_metrics(classes: int) -> MetricCollection:
    """Top-1, top-5 (where there are more than five classes) and expected calibration error, all in [0, 1]."""
    metrics: dict[str, Any] = {"top1": MulticlassAccuracy(classes, average="micro")}
    if classes > 5:
        metrics["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
    metrics["ece"] = MulticlassCalibrationError(classes, n_bins=CALIBRATION_BINS)
    return MetricCollection(metrics)
