"""Any folder of class folders."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compresslens.errors import UserError
from datamodules.image_datamodule import Split
from datamodules.image_files import FileImages, ImageFileDataModule, MaskFiles, class_folders, list_classes
from datamodules.selection import stratified_split


class ImageFolder(ImageFileDataModule):
    """Images in one folder per class, found at any depth below it.

    Either ``root/train/<class>/…`` with ``root/val/<class>/…`` and ``root/test/<class>/…``, or just
    ``root/<class>/…``. A split that has no folder of its own is held out from the training images, stratified by class.

    Args:
        root: folder of the data.
        masks: folder of PNG object masks (non-zero = object) that mirrors ``root``: ``masks/train/cat/1.png`` for
            ``root/train/cat/1.jpg``; None: there are no masks.
        image_size: side of the images that the evaluation sees.
        validation_fraction: part of the training images held out if there is no ``root/val``.
        test_fraction: part of the training images held out if there is no ``root/test``.
        class_count: number of classes that must be there; None takes what there is.
        kwargs: as for ``ImageFileDataModule``.
    """

    def __init__(
        self,
        root: str,
        masks: str | None = None,
        image_size: int = 224,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        class_count: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, **kwargs)
        self.root = Path(root)
        self.masks = masks
        self.fractions: dict[Split, float] = {"val": validation_fraction, "test": test_fraction}
        self.class_count = class_count
        if min(self.fractions.values()) <= 0 or sum(self.fractions.values()) >= 1:
            raise UserError("data.validation_fraction and data.test_fraction must be above 0 and below 1 together.")

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Names of the class folders, sorted.

        Raises:
            UserError: if the folder is missing or does not hold class folders.
        """
        if not self.root.is_dir():
            raise UserError(
                f"The data folder {self.root} does not exist; data.root must hold train/<class>/<images> "
                "(and val/, test/), or <class>/<images>."
            )
        names = class_folders(self._train_folder)
        if len(names) < 2 or (self.class_count is not None and len(names) != self.class_count):
            expected = "at least 2" if self.class_count is None else f"{self.class_count}"
            raise UserError(f"{self._train_folder} has {len(names)} class folder(s); expected {expected}.")
        return names

    @property
    def _train_folder(self) -> Path:
        return self.root / "train" if (self.root / "train").is_dir() else self.root

    def build_dataset(self, split: Split) -> FileImages:
        """The files of a split."""
        return self._folder(split) if self._has_folder(split) else self._carved[split]

    def _has_folder(self, split: Split) -> bool:
        return split != "train" and self._train_folder != self.root and (self.root / split).is_dir()

    def _folder(self, split: Split) -> FileImages:
        folder = self._train_folder if split == "train" else self.root / split
        masks = MaskFiles(self.root, self.masks) if self.masks else None
        images = FileImages(*list_classes(folder, self.class_names), masks)
        if masks is not None:
            masks.require(images.paths)
        return self.without_corrupt(images, str(folder))

    @cached_property
    def _carved(self) -> dict[Split, FileImages]:
        """The training folder, divided among the splits that have no folder of their own."""
        images = self._folder("train")
        rest, parts = np.arange(len(images)), {}
        # The test images come first, so that they stay the same when validation_fraction changes.
        for number, split in enumerate(("test", "val")):
            if not self._has_folder(split):  # type: ignore[arg-type]
                held_out = max(1, round(self.fractions[split] * len(images)))  # type: ignore[index]
                keep, chosen = stratified_split(images.targets[rest], held_out, self.seed + number)
                rest, parts[split] = rest[keep], images.subset(rest[chosen])
        return {"train": images.subset(rest), **parts}  # type: ignore[dict-item]
