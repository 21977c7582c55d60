"""Small data sets that are kept in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from compresslens.errors import UserError
from datamodules.image_datamodule import ImageDataModule, Split
from datamodules.selection import stratified_split


class ArrayImages(Dataset[Any]):
    """Items ``(image, label)`` from arrays.

    Args:
        images: uint8, N×C×H×W.
        targets: labels, N.
        image_size: images of another size are resized (bicubic with antialiasing) when they are asked for.
    """

    def __init__(self, images: npt.NDArray[np.uint8], targets: npt.ArrayLike, image_size: int) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(images))
        self.targets = np.asarray(targets, dtype=np.int64)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if image.shape[-2:] != (self.image_size, self.image_size):
            from torchvision.transforms.v2 import InterpolationMode
            from torchvision.transforms.v2.functional import resize

            image = resize(image, [self.image_size, self.image_size], InterpolationMode.BICUBIC, antialias=True)
        return image, int(self.targets[index])


class ArrayDataModule(ImageDataModule):
    """Base of the small benchmarks with official training and test images, which torchvision can download.

    Args:
        root: folder of the data.
        download: fetch the data with torchvision if it is not there.
        image_size: side of the images.
        validation_fraction: part of the official training images held out for validation, stratified by class.
        kwargs: as for ``ImageDataModule``.
    """

    torchvision_name: ClassVar[str]

    def __init__(self, root: str, download: bool, image_size: int, validation_fraction: float, **kwargs: Any) -> None:
        super().__init__(image_size=image_size, **kwargs)
        if not 0 < validation_fraction < 1:
            raise UserError(f"data.validation_fraction is {validation_fraction} but must be between 0 and 1.")
        self.root = Path(root)
        self.download = download
        self.validation_fraction = validation_fraction

    def missing(self) -> str | None:
        """What the user should read if the data is not there; None if it is."""
        raise NotImplementedError

    def read(self, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Images (N×C×H×W) and labels of the official "train" or "test" part."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Downloads the data if that was asked for.

        Raises:
            UserError: if the data is missing, or the download fails.
        """
        if self.missing() and self.download:
            from torchvision import datasets

            try:
                getattr(datasets, self.torchvision_name)(self.root, download=True)
            except (OSError, RuntimeError) as error:
                raise UserError(f"The download of {self.torchvision_name} to {self.root} failed: {error}") from error
        if message := self.missing():
            raise UserError(message)

    def build_dataset(self, split: Split) -> ArrayImages:
        """The images of a split, in memory."""
        self.prepare_data()
        images, targets = self.read("test" if split == "test" else "train")
        if split != "test":
            held_out = max(1, round(self.validation_fraction * len(targets)))
            train, val = stratified_split(targets, held_out, self.seed)
            chosen = train if split == "train" else val
            images, targets = images[chosen], targets[chosen]
        return ArrayImages(images, targets, self.image_size)
