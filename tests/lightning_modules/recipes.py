"""Whole experiments of every kind, for the tests that interrupt and continue them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torchvision.transforms import v2

from compresslens.distillation import ClassActivationLoss, HintLoss, LogitKDLoss
from compresslens.networks import PixelNetwork
from lightning_modules import Distillation, ImageClassifier, QuantizationAwareTraining
from lightning_modules.low_rank import FactorizeAndFinetune
from lightning_modules.pruning import PruneAndFinetune
from tests.lightning_modules.tiny import CLASSES, SIZE, NoiseData, TinyNetwork

Recipe = Callable[[], "Experiment"]
Experiment = tuple[pl.LightningModule, NoiseData, dict[str, Any], list[pl.Callback]]


def optimization() -> dict[str, Any]:
    sgd = partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-3)
    return {"optimizer": sgd, "scheduler": partial(OneCycleLR, max_lr=0.1)}


def augmentation() -> list[torch.nn.Module]:
    return [v2.RandomCrop(SIZE, padding=2), v2.RandomHorizontalFlip()]


def classifier() -> Experiment:
    """Augmentation, mixup, dropout, one cycle."""
    module = ImageClassifier(TinyNetwork(), **optimization(), mixup_alpha=0.3, label_smoothing=0.1)
    return module, NoiseData(train_transforms=augmentation()), {}, []


def cached() -> Experiment:
    """Distillation from cached logits."""
    module = Distillation(TinyNetwork(), TinyNetwork(6, seed=1), [LogitKDLoss()], **optimization())
    return module, NoiseData(), {}, []


def hints() -> Experiment:
    """Distillation with augmentation and an adapter."""
    losses = [LogitKDLoss(), HintLoss(["layer2"])]
    module = Distillation(TinyNetwork(), TinyNetwork(6, seed=1), losses, **optimization())
    return module, NoiseData(train_transforms=augmentation()), {}, []


def maps() -> Experiment:
    """Distillation with an adapter and class-activation maps, which need the teacher's gradient."""
    losses = [
        HintLoss(["layer2"]),
        ClassActivationLoss(["layer2"]),
        LogitKDLoss(weight=0.0),
        HintLoss(["layer1"], weight=0.0),
    ]
    module = Distillation(TinyNetwork(), TinyNetwork(6, seed=1), losses, **optimization(), label_weight=0.5)
    return module, NoiseData(train_transforms=augmentation()), {}, []


def averaged() -> Experiment:
    """An exponential moving average of the weights."""
    module, data, options, _ = classifier()
    return module, data, options, [pl.callbacks.EMAWeightAveraging(decay=0.8)]


def averaged_hints() -> Experiment:
    """An exponential moving average of a student with an adapter."""
    module, data, options, _ = hints()
    return module, data, options, [pl.callbacks.EMAWeightAveraging(decay=0.8)]


def accumulated() -> Experiment:
    module, data, _, _ = classifier()
    return module, data, {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}, []


def often_validated() -> Experiment:
    module, data, _, _ = classifier()
    return module, data, {"val_check_interval": 4}, []


def workers() -> Experiment:
    """AdamW, a scheduler that moves once per epoch, worker processes, bfloat16."""
    module = ImageClassifier(
        TinyNetwork(),
        partial(AdamW, lr=0.01),
        partial(CosineAnnealingLR, T_max=3),
        scheduler_interval="epoch",
        cutmix_alpha=1.0,
        decay_norm_and_bias=False,
    )
    return module, NoiseData(train_transforms=augmentation(), num_workers=2), {"precision": "bf16-mixed"}, []


def plateau() -> Experiment:
    """A scheduler that looks at a metric."""
    scheduler = partial(pl.cli.ReduceLROnPlateau, monitor="val/loss", patience=0, threshold=0.5)
    module = ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1), scheduler, scheduler_interval="epoch")
    return module, NoiseData(), {"max_epochs": 4}, []


def stopped_early() -> Experiment:
    module, data, _, _ = classifier()
    return (
        module,
        data,
        {"max_epochs": 6},
        [pl.callbacks.EarlyStopping("val/top1", mode="max", patience=1, min_delta=0.5)],
    )


def fixed_steps() -> Experiment:
    module, data, _, _ = classifier()
    return module, data, {"max_steps": 22, "max_epochs": -1}, []


def validated_by_steps() -> Experiment:
    """Validates every 5 batches, across the epochs."""
    module, data, _, _ = classifier()
    return module, data, {"val_check_interval": 5, "check_val_every_n_epoch": None}, []


def on_two_devices(recipe: Recipe) -> Experiment:
    """Each of two processes takes half of every batch."""
    module, data, options, callbacks = recipe()
    data.batch_size //= 2
    return module, data, {**options, "devices": 2, "strategy": "ddp"}, callbacks


def never_validated() -> Experiment:
    module, data, _, _ = classifier()
    return module, data, {"limit_val_batches": 0}, []


class NaNClassifier(ImageClassifier):
    """Its loss is not a number on one rank in the third batch."""

    def __init__(self, rank: int) -> None:
        super().__init__(TinyNetwork(), partial(SGD, lr=0.1))
        self.rank = rank

    def training_loss(self, images: Tensor, labels: Tensor, targets: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_loss(images, labels, targets, batch_idx)
        return loss * torch.nan if batch_idx == 2 and self.global_rank == self.rank else loss


def not_a_number(rank: int) -> Experiment:
    return NaNClassifier(rank), NoiseData(), {}, []


def factorized() -> Experiment:
    """Low-rank layers, distilled from the network before."""
    module = FactorizeAndFinetune(
        TinyNetwork(8), "tucker", energy=0.6, losses=[LogitKDLoss(weight=0.5)], **optimization()
    )
    return module, NoiseData(train_transforms=augmentation()), {}, []


def pruned() -> Experiment:
    """Single weights by their gradients, ever more during the training; distilled from the network before."""
    module = PruneAndFinetune(
        TinyNetwork(8),
        criterion="taylor",
        sparsity=0.8,
        schedule="cubic",
        schedule_steps=6,
        schedule_begin=0.1,
        schedule_end=0.7,
        keep_first_and_last=False,
        calibration_samples=20,
        losses=[LogitKDLoss(weight=0.5)],
        **optimization(),
    )
    return module, NoiseData(train_transforms=augmentation()), {}, []


def pruned_to_a_pattern() -> Experiment:
    """N:M in several updates."""
    module = PruneAndFinetune(
        TinyNetwork(8), "n:m", "lamp", pattern="1:4", schedule="iterative", schedule_steps=3, **optimization()
    )
    return module, NoiseData(train_transforms=augmentation()), {"accumulate_grad_batches": 2}, []


def pruned_at_once() -> Experiment:
    """Before training, with an exponential moving average of the weights."""
    module = PruneAndFinetune(TinyNetwork(8), criterion="random", scope="layer", macs=0.6, **optimization())
    return module, NoiseData(), {}, [pl.callbacks.EMAWeightAveraging(decay=0.8)]


def narrowed() -> Experiment:
    """Channels, ever more between the epochs, with an optimizer that remembers a lot."""
    module = PruneAndFinetune(
        TinyNetwork(16),
        "channels",
        "taylor",
        parameters=0.4,
        schedule="iterative",
        schedule_steps=3,
        keep_first_and_last=False,
        calibration_samples=20,
        optimizer=partial(AdamW, lr=0.01),
        scheduler=partial(OneCycleLR, max_lr=0.01),
    )
    return module, NoiseData(train_transforms=augmentation()), {}, []


def narrowed_at_once() -> Experiment:
    """Channels before training, distilled by the logits and a layer."""
    module = PruneAndFinetune(
        TinyNetwork(8),
        "channels",
        "bn_scale",
        macs=0.6,
        keep_first_and_last=False,
        losses=[LogitKDLoss(), HintLoss(["layer2"])],
        **optimization(),
    )
    return module, NoiseData(train_transforms=augmentation()), {}, [pl.callbacks.EMAWeightAveraging(decay=0.8)]


def in_pixels(network: TinyNetwork) -> PixelNetwork:
    return PixelNetwork(network, (0.5,) * 3, (0.25,) * 3, "tiny", CLASSES, SIZE)


def rounded() -> Experiment:
    """INT8 with augmentation, distillation and dropout; ranges and statistics freeze in mid-epoch, on the way."""
    freezing = {"freeze_observers_after": 0.4, "freeze_batchnorm_after": 0.7}
    network = in_pixels(TinyNetwork())
    module = QuantizationAwareTraining(
        network, calibration_samples=20, losses=[LogitKDLoss()], **freezing, **optimization()
    )
    return module, NoiseData(train_transforms=augmentation()), {}, []


def rounded_without_training() -> Experiment:
    module = QuantizationAwareTraining(in_pixels(TinyNetwork()), calibration_samples=20)
    return module, NoiseData(), {"max_epochs": 0}, []


def learned_steps() -> Experiment:
    """Four bits."""
    module = QuantizationAwareTraining(
        in_pixels(TinyNetwork()), "learned_steps", 4, 4, calibration_samples=20, **optimization()
    )
    return module, NoiseData(train_transforms=augmentation()), {}, []
