"""A config of a few steps: a network of a few layers on 100 images in the format of Fashion-MNIST."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml

from tests.real_formats import write_fashion_mnist

BASES = ["base/default.yaml", "base/fashion_mnist.yaml"]
NETWORK = {"architecture": "test_resnet", "num_classes": 10, "image_size": 28, "stem": "imagenet"}
TINY: dict[str, Any] = {
    "extends": BASES,
    "data": {"init_args": {"image_size": 28, "train_transforms": None}},
    "model": {"init_args": {"network": {"init_args": NETWORK}}},
}


def write_tiny(folder: Path) -> None:
    """`tiny.yaml`, and `data/` where it looks for it."""
    write_fashion_mnist(folder / "data")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))


class CtrlC(pl.Callback):
    """Presses it at the start of the given batch, if the environment says INTERRUPT."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch and "INTERRUPT" in os.environ:
            raise KeyboardInterrupt
