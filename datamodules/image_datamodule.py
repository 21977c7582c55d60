"""What all data sets share: splits, loaders, order of the images, augmentation, the fixed probe subset."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from compresslens.errors import UserError
from datamodules.samplers import EvaluationSampler, TrainingLoader, TrainingSampler
from datamodules.selection import Indices, balanced_indices
from datamodules.transformed import TransformedDataset, collate, contains, is_deterministic

Split = Literal["train", "val", "test"]


class ImageDataModule(pl.LightningDataModule):
    """Base of the data sets. A subclass defines :meth:`build_dataset` and :attr:`class_names`.

    Batches are ``(images, labels)`` or ``(images, labels, masks)``: float32 N×3×H×W in [0, 1] (normalization is the
    network's business), int64 N, bool N×H×W.

    The order of the images and their augmentation depend on (seed, epoch, index) only: neither on the number of workers
    or ranks, nor on whether the run was interrupted. A fit resumed in the middle of an epoch continues with the batch
    after the last one trained on.

    Args:
        image_size: side of the square images that the evaluation sees.
        batch_size: images per training batch and rank.
        eval_batch_size: the same for validation and test; ``batch_size`` if None.
        num_workers: processes that load images, per rank.
        seed: for order, augmentation, validation split; non-negative.
        train_transforms: ``torchvision.transforms.v2`` for training; None means ``eval_transforms``.
        eval_transforms: the same for validation and test; None means the data set's own default.
        probe_samples: size of the class-balanced subset on which CAMs, attacks and embeddings are computed.
    """

    def __init__(
        self,
        image_size: int,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_transforms: list[nn.Module] | None = None,
        eval_transforms: list[nn.Module] | None = None,
        probe_samples: int = 128,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.probe_samples = probe_samples
        limits = {
            "image_size": 1,
            "batch_size": 1,
            "eval_batch_size": 1,
            "num_workers": 0,
            "seed": 0,
            "probe_samples": 1,
        }
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise UserError(f"data.{name} is {getattr(self, name)} but must be at least {least}.")
        self.eval_transforms = self.default_transforms() if eval_transforms is None else eval_transforms
        self.train_transforms = self.eval_transforms if train_transforms is None else train_transforms
        if any(contains(transform, "Normalize") for transform in [*self.eval_transforms, *self.train_transforms]):
            raise UserError("Take Normalize out of the transforms: the network itself normalizes pixels in [0, 1].")
        self._datasets: dict[Split, TransformedDataset] = {}
        self._order_of_epoch: tuple[int, torch.Tensor] | None = None

    # What a subclass defines -------------------------------------------------------------------------------------

    def build_dataset(self, split: Split) -> Dataset[Any]:
        """Items ``(image, label)`` or ``(image, label, mask)``: uint8 tensor C×H×W or PIL image, int, bool tensor H×W.

        The data set's attribute ``targets`` holds all labels (if it has none, all items are read for their labels).
        """
        raise NotImplementedError

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels; known before ``setup``."""
        raise NotImplementedError

    def default_transforms(self) -> list[nn.Module]:
        """Transforms for ``eval_transforms=None``; may use ``self.image_size``."""
        return []

    # What others use ---------------------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def deterministic_training_images(self) -> bool:
        """Whether a training image looks the same in every epoch, so that what the teacher says of it can be kept."""
        return all(is_deterministic(transform) for transform in self.train_transforms)

    @property
    def train_samples(self) -> TransformedDataset:
        """The training images in the order of their indices, as they look at epoch 0."""
        return self.dataset("train")

    def dataset(self, split: Split) -> TransformedDataset:
        """The split's samples as the network gets them; built at the first call."""
        if split not in self._datasets:
            samples = self.build_dataset(split)
            transforms = self.train_transforms if split == "train" else self.eval_transforms
            dataset = TransformedDataset(samples, transforms, self.seed)
            if len(dataset) == 0:
                raise UserError(f"{type(self).__name__}: the {split} split is empty.")
            self._datasets[split] = dataset
            if split == "train":
                self._require_all_classes()
        return self._datasets[split]

    def labels(self, split: Split) -> Indices:
        """All labels of a split (int64, N)."""
        samples = self.dataset(split).samples
        targets = getattr(samples, "targets", None)
        if targets is None:
            targets = [samples[index][1] for index in range(len(self.dataset(split)))]
        return np.asarray(targets, dtype=np.int64)

    def probe_indices(self, split: Split = "val") -> Indices:
        """Indices of the probe subset: a function of labels, ``probe_samples`` and ``seed`` only."""
        labels = self.labels(split)
        if len(labels) < self.probe_samples:
            warnings.warn(
                f"The {split} split has {len(labels)} images, fewer than probe_samples={self.probe_samples}: "
                "the probes use all of them.",
                stacklevel=2,
            )
        return balanced_indices(labels, self.probe_samples, self.seed)

    def probe_dataset(self, split: Split = "val") -> Subset[Any]:
        """The fixed class-balanced subset that every model is probed on; its ``indices`` are those in the split."""
        return Subset(self.dataset(split), self.probe_indices(split).tolist())

    def calibration_loader(self, samples: int) -> DataLoader[Any]:
        """Batches of a fixed class-balanced subset of the training images, as the evaluation would see them.

        What compression measures on data (ranges of activations, gradients) is measured on these. They depend on
        ``samples`` and ``seed`` only, and are the same on every rank.

        Args:
            samples: at most so many images; all if there are fewer.
        """
        indices = balanced_indices(self.labels("train"), samples, self.seed).tolist()
        dataset = TransformedDataset(self.dataset("train").samples, self.eval_transforms, self.seed)
        options = {**self._loader_options(), "persistent_workers": False}
        return DataLoader(Subset(dataset, indices), batch_size=self.eval_batch_size, **options)

    # What Lightning calls ----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Builds the splits that the stage needs, so that missing data is noticed before anything else happens."""
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in splits.get(stage, ("test",)):
            self.dataset(split)

    def train_dataloader(self) -> TrainingLoader:
        """Shuffled full batches, from where the trainer stands."""
        dataset = self.dataset("train")
        rank, world_size = self._rank()
        sampler = TrainingSampler(len(dataset), self.batch_size, self.seed, rank, world_size)
        epoch, batches = self._progress()
        # A checkpoint of an epoch's last batch counts the epoch as unfinished; Lightning goes on with the next one.
        # Workers start to load before Lightning tells the sampler so.
        sampler.start_at(*((epoch, batches) if batches < sampler.batches else (epoch + 1, 0)))
        return TrainingLoader(dataset, self.batch_size, sampler=sampler, drop_last=True, **self._loader_options())

    def training_indices(self, batch_idx: int) -> torch.Tensor:
        """Indices (int64) of the samples in this rank's training batch of that number in the current epoch."""
        assert self.trainer is not None
        sampler = getattr(self.trainer.train_dataloader, "sampler", None)
        assert isinstance(sampler, TrainingSampler)
        epoch = self.trainer.current_epoch
        if self._order_of_epoch is None or self._order_of_epoch[0] != epoch:
            self._order_of_epoch = (epoch, torch.from_numpy(sampler.order(epoch)))
        return self._order_of_epoch[1][batch_idx * self.batch_size : (batch_idx + 1) * self.batch_size]

    def val_dataloader(self) -> DataLoader[Any]:
        """All validation images in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """All test images in order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test images."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Where training stands: ``batches`` of ``epoch`` were trained on, and what makes up a batch."""
        epoch, batches = self._progress()
        return {"epoch": epoch, "batches": batches, "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that the rest of an epoch can be continued (the place itself is in the trainer's own progress).

        Raises:
            UserError: if the checkpoint is from the middle of an epoch whose batches would now be other ones.
        """
        if state_dict["batches"] == 0:
            return
        before, now = state_dict["order"], self._order()
        changed = ", ".join(f"{key} was {before[key]} and is {now[key]}" for key in now if before[key] != now[key])
        if changed:
            raise UserError(f"The checkpoint is from the middle of an epoch, which cannot be continued: {changed}.")

    def _require_all_classes(self) -> None:
        counts = np.bincount(self.labels("train"), minlength=self.num_classes)
        absent = [str(label) for label in np.flatnonzero(counts == 0)]
        if len(counts) > self.num_classes or absent:
            what = f"no image of class {', '.join(absent[:5])}" if absent else f"labels up to {len(counts) - 1}"
            raise UserError(f"{type(self).__name__} has {self.num_classes} classes but its training split has {what}.")

    def _evaluation_loader(self, split: Split) -> DataLoader[Any]:
        dataset = self.dataset(split)
        sampler = EvaluationSampler(len(dataset), *self._rank())
        return DataLoader(dataset, batch_size=self.eval_batch_size, sampler=sampler, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": collate,
            "pin_memory": on_gpu,
            # Without a generator of its own a loader draws its workers' seed from the global random state.
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _order(self) -> dict[str, int]:
        images, (_, ranks) = len(self.dataset("train")), self._rank()
        return {"images": images, "batch_size": self.batch_size, "ranks": ranks, "seed": self.seed}

    def _progress(self) -> tuple[int, int]:
        """Current epoch and the batches of it that were trained on, as the trainer counts them (not the prefetched)."""
        if self.trainer is None:
            return 0, 0
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        # At the end of an epoch the epoch is counted before the count of batches is reset.
        return epochs.processed, batches.processed if epochs.ready > epochs.processed else 0
