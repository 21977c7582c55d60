"""Data sets of image files: listing, decoding, masks, and what to do about files that cannot be read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from compresslens.errors import UserError
from datamodules.image_datamodule import ImageDataModule
from datamodules.transformed import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# From the image's path and (width, height) to its mask, bool H×W.
MaskSource = Callable[[str, tuple[int, int]], Tensor]


class FileImages(Dataset[Any]):
    """Items ``(PIL image, label)`` or ``(PIL image, label, mask)`` from files.

    Args:
        paths: image files.
        targets: their labels.
        masks: gives each image's mask; None: no masks.
    """

    def __init__(self, paths: Sequence[str], targets: Sequence[int], masks: MaskSource | None = None) -> None:
        self.paths = list(paths)
        self.targets = np.asarray(targets, dtype=np.int64)
        self.masks = masks

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        path = self.paths[index]
        image = load_image(path)
        label = int(self.targets[index])
        return (image, label) if self.masks is None else (image, label, self.masks(path, image.size))

    def subset(self, indices: Sequence[int] | np.ndarray) -> FileImages:
        """The images at ``indices``."""
        return FileImages([self.paths[index] for index in indices], self.targets[np.asarray(indices, int)], self.masks)


class MaskFiles:
    """Masks from a folder tree that mirrors the images': ``masks/cat/1.png`` for ``images/cat/1.jpg``; 0 = no object.

    Args:
        image_root: folder of the images.
        mask_root: folder of the masks.
    """

    def __init__(self, image_root: str | Path, mask_root: str | Path) -> None:
        self.image_root = Path(image_root)
        self.mask_root = Path(mask_root)

    def path(self, image: str) -> Path:
        """The mask file of an image."""
        return self.mask_root / Path(image).relative_to(self.image_root).with_suffix(".png")

    def require(self, images: Sequence[str]) -> None:
        """Raises ``UserError`` if an image has no mask file."""
        missing = [image for image in images if not self.path(image).is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(images)} images have no mask; {self.path(missing[0])} is missing, for example."
            )

    def __call__(self, image: str, size: tuple[int, int]) -> Tensor:
        path = self.path(image)
        mask = np.asarray(_open(str(path), mode=None)) != 0
        mask = mask if mask.ndim == 2 else mask[..., :3].any(axis=-1)
        if mask.shape != size[::-1]:
            raise DataError(
                f"The mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels but its image has {size[0]}x{size[1]}."
            )
        return torch.from_numpy(mask)


def load_image(path: str) -> Any:
    """Decodes a file to a PIL image in RGB.

    Raises:
        DataError: naming the file, if it is missing or cannot be decoded.
    """
    return _open(path, mode="RGB")


def _open(path: str, mode: str | None) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image.convert(mode) if mode else image.copy()
    except FileNotFoundError:
        raise DataError(f"The file {path} is missing.") from None
    # Broken files make Pillow raise about anything, e.g. SyntaxError for a PNG, struct.error for a TIFF.
    except Exception as error:
        reason = str(error).replace(f"image file {path!r}", "its format").replace(repr(path), "the file")
        raise DataError(
            f"The file {path} is no readable image ({reason}); replace or remove it, or set data.on_corrupt: skip."
        ) from None


def list_images(folder: Path, what: str) -> list[str]:
    """All image files below a folder, sorted; hidden ones are left out.

    Raises:
        UserError: if there are none.
    """
    paths = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [os.path.join(place, name) for name in files if is_image(name)]
    if not paths:
        raise UserError(f"The {what} {folder} holds no images.")
    return sorted(paths)


def is_image(name: str) -> bool:
    """Whether a file name is that of an image."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def class_folders(folder: Path) -> list[str]:
    """Names of the sub-folders, sorted: the classes."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def list_classes(folder: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Paths and labels of all images in a folder of class folders.

    Raises:
        UserError: if there is a class folder which is not in ``classes``, or an empty one.
    """
    unknown = sorted(set(class_folders(folder)) - set(classes))
    if unknown:
        raise UserError(f"{folder} has class folders that the training data lacks: {', '.join(unknown[:5])}.")
    paths: list[str] = []
    targets: list[int] = []
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            found = list_images(folder / name, "class folder")
            paths += found
            targets += [label] * len(found)
    return paths, targets


class ImageFileDataModule(ImageDataModule):
    """Base of the data sets whose images are files of any size.

    Args:
        image_size: side of the square that the default transforms cut from the centre, after resizing the shorter side
            to ``image_size / 0.875`` (bicubic).
        num_workers: processes that decode images, per rank.
        on_corrupt: "raise" stops at the first file which cannot be read; "skip" reads all files beforehand, leaves the
            bad ones out and warns with their number and names.
        kwargs: as for ``ImageDataModule``.
    """

    def __init__(
        self,
        image_size: int = 224,
        num_workers: int = 4,
        on_corrupt: Literal["raise", "skip"] = "raise",
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, num_workers=num_workers, **kwargs)
        self.on_corrupt = on_corrupt

    def default_transforms(self) -> list[nn.Module]:
        """Resize and centre crop."""
        from torchvision.transforms import v2

        shorter_side = int(self.image_size / 0.875)
        return [
            v2.Resize(shorter_side, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(self.image_size),
        ]

    def without_corrupt(self, images: FileImages, what: str) -> FileImages:
        """The images that can be read, if ``on_corrupt`` is "skip"; else all of them."""
        if self.on_corrupt == "raise":
            return images
        from tqdm import tqdm

        def error(index: int) -> str | None:
            try:
                images[index]
            except DataError as problem:
                return str(problem)
            return None

        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            errors = list(tqdm(pool.map(error, range(len(images))), f"Checking {what}", len(images), leave=False))
        bad = [problem for problem in errors if problem]
        if bad:
            names = "\n".join(bad[:5] + ["..."] * (len(bad) > 5))
            warnings.warn(f"Left out {len(bad)} of {len(images)} files ({what}):\n{names}", stacklevel=2)
        return images.subset([index for index, problem in enumerate(errors) if problem is None])
