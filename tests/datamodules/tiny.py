"""A data set of plain squares and a module that writes down what it is given."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from datamodules import ImageDataModule
from datamodules.image_datamodule import Split

SIZE = 8


class Squares(Dataset[Any]):
    """Image number i has the grey value i everywhere, label i % 3 and, if asked for, a mask of its left half."""

    def __init__(self, count: int, masks: bool = False, label: int | None = None) -> None:
        self.targets = [number % 3 if label is None else label for number in range(count)]
        self.masks = masks

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image = torch.full((1, SIZE, SIZE), index, dtype=torch.uint8)
        mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        mask[:, : SIZE // 2] = True
        return (image, self.targets[index], mask) if self.masks else (image, self.targets[index])


class TinyData(ImageDataModule):
    """29 training, 10 validation and 7 test squares."""

    def __init__(self, train: int = 29, val: int = 10, masks: bool = False, **kwargs: Any) -> None:
        super().__init__(image_size=SIZE, **{"batch_size": 4, "probe_samples": 6, **kwargs})
        self.sizes: dict[Split, int] = {"train": train, "val": val, "test": 7}
        self.masks = masks

    @property
    def class_names(self) -> list[str]:
        return ["a", "b", "c"]

    def build_dataset(self, split: Split) -> Squares:
        return Squares(self.sizes[split], self.masks)


def indices(images: Tensor) -> list[int]:
    """The numbers of squares that no transform has touched."""
    return [int(value) for value in (images[:, 0, 0, 0] * 255).round()]


class Recorder(pl.LightningModule):
    """Trains a linear layer and keeps a list of what happens."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * SIZE * SIZE, 3)
        self.stop_at = stop_at
        self.events: list[tuple[Any, ...]] = []

    def on_train_epoch_start(self) -> None:
        self.events.append(("epoch starts", self.current_epoch))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        if self.global_step == self.stop_at:
            raise RuntimeError("killed")
        last = self.trainer.is_last_batch
        self.events.append(("train", self.current_epoch, batch_idx, self.global_step, indices(batch[0]), last))
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self.events.append(("validate", self.current_epoch, batch_idx, self.global_step, indices(batch[0])))

    def on_train_epoch_end(self) -> None:
        self.events.append(("epoch ends", self.current_epoch, self.global_step))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
