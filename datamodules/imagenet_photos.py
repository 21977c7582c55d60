"""Photos of ImageNet's classes in a folder of one's own."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from compresslens.errors import UserError
from datamodules.image_datamodule import Split
from datamodules.image_files import FileImages, ImageFileDataModule, list_images

CLASSES = 1000


class ImageNetPhotos(ImageFileDataModule):
    """Photos of any of ImageNet's 1,000 classes, to evaluate networks with published weights on: no training.

    The photos lie in ``root`` at any depth. The nearest folder around a photo whose name says a class tells its class:
    by WordNet id (``n01443537``), by label (``1``) or by English name (``goldfish``, ``great_white_shark``; as
    torchvision spells them). Where there is none, the photo's own name must begin with the WordNet id
    (``n01443537_2.JPEG``). Validation and test are all photos.

    Args:
        root: folder of the photos.
        image_size: side of the images that the evaluation sees.
        kwargs: as for ``ImageFileDataModule``.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, **kwargs)
        self.root = Path(root).expanduser()

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """English names in the order of the labels."""
        from torchvision.models import ResNet18_Weights

        return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])

    @cached_property
    def wnids(self) -> list[str]:
        """WordNet ids in the order of the labels: alphabetical."""
        from timm.data import ImageNetInfo

        return list(ImageNetInfo("imagenet-1k").label_names())

    def build_dataset(self, split: Split) -> FileImages:
        """All photos.

        Raises:
            UserError: there are none, the class of one cannot be told, or training images are asked for.
        """
        if split == "train":
            raise UserError("ImageNetPhotos is for evaluation; train on datamodules.ImageNet or ImageFolder.")
        if not self.root.is_dir():
            raise UserError(f"The data folder {self.root} does not exist; data.root must be a folder of photos.")
        paths = list_images(self.root, "folder")
        labels = [self._label(Path(path)) for path in paths]
        unknown = [path for path, label in zip(paths, labels, strict=True) if label is None]
        if unknown:
            raise UserError(
                f"{len(unknown)} of {len(paths)} photos have no class, such as {unknown[0]}: put them into folders "
                "named by WordNet id (n01443537), label (1) or English name (goldfish)."
            )
        images = FileImages(paths, [label for label in labels if label is not None])
        return self.without_corrupt(images, str(self.root))

    def _label(self, path: Path) -> int | None:
        for folder in reversed(path.relative_to(self.root).parts[:-1]):
            label = self._labels.get(_plain(folder))
            if label is not None:
                return label
        prefix = re.match(r"n\d{8}", path.name)
        return self._labels.get(prefix[0]) if prefix else None

    @cached_property
    def _labels(self) -> dict[str, int]:
        """Label by everything that a folder may be called; names that two classes share say nothing."""
        names = [_plain(name) for name in self.class_names]
        known = {name: label for label, name in enumerate(names) if names.count(name) == 1}
        known |= {str(label): label for label in range(CLASSES)}
        return known | {wnid: label for label, wnid in enumerate(self.wnids)}


def _plain(name: str) -> str:
    return name.lower().replace("_", " ")
