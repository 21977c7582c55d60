"""ImageNet, ILSVRC 2012 (Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015)."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from compresslens.errors import UserError
from datamodules.image_datamodule import Split
from datamodules.image_files import FileImages, ImageFileDataModule, class_folders, is_image, list_classes
from datamodules.imagenet_files import DEVKIT, BoxMasks, Devkit, read_devkit, unpack
from datamodules.selection import stratified_split

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"


class ImageNet(ImageFileDataModule):
    """ImageNet-1k, or a subset of its classes. Test = the official validation images, as is the custom of the field.

    ``root`` holds ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``; or ``val/*.JPEG`` without sub-folders, beside the
    devkit (``ILSVRC2012_devkit_t12/`` or its .tar.gz) which has the labels; or the official archives
    ``ILSVRC2012_img_train.tar`` and ``ILSVRC2012_img_val.tar``, which are then unpacked in place, once. Labels number
    the WordNet ids in alphabetical order, as all published ImageNet weights do.

    Args:
        root: folder of the data.
        boxes: folder of the validation images' bounding boxes (``*.xml``, also one level down), or
            ``ILSVRC2012_bbox_val_v3.tgz`` itself. Test batches then have masks: the union of an image's boxes.
        image_size: side of the images that the evaluation sees.
        validation_samples: training images held out for validation, stratified by class.
        class_count: number of classes that must be there.
        kwargs: as for ``ImageFileDataModule``.
    """

    def __init__(
        self,
        root: str,
        boxes: str | None = None,
        image_size: int = 224,
        validation_samples: int = 10_000,
        class_count: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, **kwargs)
        self.root = Path(root)
        self.boxes = boxes
        self.validation_samples = validation_samples
        self.class_count = class_count
        if validation_samples < 1:
            raise UserError(f"data.validation_samples is {validation_samples} but must be at least 1.")

    @property
    def num_classes(self) -> int:
        """``class_count``; known before the archives are unpacked."""
        return self.class_count

    @cached_property
    def wnids(self) -> list[str]:
        """WordNet ids in the order of the labels.

        Raises:
            UserError: if the training folder is missing or has another number of classes.
        """
        folder = self.root / "train"
        if not folder.is_dir():
            raise UserError(
                f"{folder} does not exist; data.root must hold train/<wnid>/*.JPEG and val/, or the official archives "
                f"{TRAIN_ARCHIVE}, {VAL_ARCHIVE} and {DEVKIT}.tar.gz (from image-net.org, after registration)."
            )
        wnids = class_folders(folder)
        if len(wnids) != self.class_count:
            raise UserError(
                f"{folder} has {len(wnids)} class folders instead of {self.class_count}; complete it, or set "
                "data.class_count for a subset."
            )
        return wnids

    @property
    def class_names(self) -> list[str]:
        """English names if the devkit is there or the classes are all 1,000; otherwise the WordNet ids."""
        if self.devkit is not None:
            return [self.devkit.names.get(wnid, wnid) for wnid in self.wnids]
        if len(self.wnids) == 1000:
            from torchvision.models import ResNet18_Weights

            return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
        return self.wnids

    @cached_property
    def devkit(self) -> Devkit | None:
        """The development kit, from its folder or archive in ``root``; None if it is not there."""
        return read_devkit(self.root)

    def prepare_data(self) -> None:
        """Unpacks the official archives where the folders ``train`` and ``val`` are missing.

        Raises:
            UserError: if an archive is damaged.
        """
        for name, folder in ((TRAIN_ARCHIVE, "train"), (VAL_ARCHIVE, "val")):
            if not (self.root / folder).exists() and (self.root / name).is_file():
                unpack(self.root / name, self.root / folder)

    def build_dataset(self, split: Split) -> FileImages:
        """The files of a split."""
        self.prepare_data()
        if split == "test":
            return self._official_validation()
        return self._held_out[split]

    @cached_property
    def _held_out(self) -> dict[str, FileImages]:
        images = FileImages(*list_classes(self.root / "train", self.wnids))
        images = self.without_corrupt(images, str(self.root / "train"))
        if self.validation_samples >= len(images):
            raise UserError(
                f"data.validation_samples is {self.validation_samples} but there are {len(images)} training images."
            )
        train, val = stratified_split(images.targets, self.validation_samples, self.seed)
        return {"train": images.subset(train), "val": images.subset(val)}

    def _official_validation(self) -> FileImages:
        folder = self.root / "val"
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist; it must hold the official validation images.")
        flat = sorted(str(path) for path in folder.iterdir() if is_image(path.name))
        paths, targets = self._flat_labels(flat) if flat else list_classes(folder, self.wnids)
        masks = BoxMasks(Path(self.boxes), paths) if self.boxes else None
        return self.without_corrupt(FileImages(paths, targets, masks), str(folder))

    def _flat_labels(self, paths: list[str]) -> tuple[list[str], list[int]]:
        if self.devkit is None:
            raise UserError(
                f"The images in {self.root / 'val'} are not in class folders; to know their labels, put "
                f"{DEVKIT}.tar.gz in {self.root}."
            )
        label = {wnid: number for number, wnid in enumerate(self.wnids)}
        targets = []
        for path in paths:
            # By the number in the name, so that a missing file does not shift the labels of those after it.
            number = re.search(r"(\d+)\.\w+$", path)
            try:
                if number is None or int(number[1]) < 1:
                    raise IndexError
                targets.append(label[self.devkit.wnids[self.devkit.ground_truth[int(number[1]) - 1]]])
            except (IndexError, KeyError):
                raise UserError(
                    f"The devkit and {self.root / 'train'} give no label for {path}: it has "
                    f"{len(self.devkit.ground_truth)} validation labels, of {len(self.devkit.wnids)} classes."
                ) from None
        return paths, targets
