"""Fashion-MNIST (Xiao et al., Fashion-MNIST: a Novel Image Dataset for Benchmarking ML Algorithms, 2017)."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from compresslens.errors import UserError
from datamodules.arrays import ArrayDataModule

DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"


class FashionMNIST(ArrayDataModule):
    """60,000 + 10,000 grey images 28×28 of clothes in 10 classes, as RGB; the official test images are the test split.

    Args:
        root: folder with ``FashionMNIST/raw/`` as torchvision makes it, or with the four ``*-ubyte`` or ``*-ubyte.gz``
            files themselves, as in the folder /usr/share/datasets/fashion-mnist of Debian's dataset-fashion-mnist.
        download: fetch the data with torchvision if it is not there.
        image_size: 28 leaves the images as they are; otherwise they are padded with black to 32 and then resized if
            32 is not wanted.
        validation_fraction: part of the official training images held out for validation, stratified by class.
        kwargs: as for ``ImageDataModule``.
    """

    torchvision_name = "FashionMNIST"

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        image_size: int = 32,
        validation_fraction: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, download, image_size, validation_fraction, **kwargs)

    @property
    def class_names(self) -> list[str]:
        """The official names."""
        upper = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
        return [*upper, "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

    def missing(self) -> str | None:
        """Names the first missing file."""
        names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        missing = [name for name in names if self._find(name) is None]
        if not missing:
            return None
        return (
            f"{missing[0]}.gz is missing in {self.root} and in {self.root / 'FashionMNIST' / 'raw'}; set "
            "data.download: true to fetch it, or install Debian's dataset-fashion-mnist and set "
            f"data.root: {DEBIAN_FOLDER}."
        )

    def read(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of the official part.

        Raises:
            UserError: if a file is damaged.
        """
        prefix = "t10k" if part == "test" else "train"
        images, targets = self._array(f"{prefix}-images-idx3-ubyte"), self._array(f"{prefix}-labels-idx1-ubyte")
        if images.shape != (len(targets), 28, 28) or targets.ndim != 1 or targets.max(initial=0) > 9:
            raise UserError(
                f"The {part} files of FashionMNIST in {self.root} do not belong together: images {images.shape}, "
                f"labels {targets.shape}; fetch them again."
            )
        if self.image_size != 28:
            images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
        return images[:, None], targets.astype(np.int64)

    def _find(self, name: str) -> Path | None:
        folders = (self.root / "FashionMNIST" / "raw", self.root)
        paths = [folder / (name + suffix) for folder in folders for suffix in ("", ".gz")]
        return next((path for path in paths if path.is_file()), None)

    def _array(self, name: str) -> np.ndarray:
        path = self._find(name)
        assert path is not None
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            return read_idx(data)
        except (EOFError, OSError, ValueError, struct.error, zlib.error) as error:
            raise UserError(f"{path} is damaged ({error}); fetch it again.") from error


def read_idx(data: bytes) -> np.ndarray:
    """Decodes MNIST's idx format: two zero bytes, type (8 = uint8), number of dimensions, sizes, values.

    Raises:
        ValueError: if the data is not an array of uint8 in that format, or incomplete.
    """
    zeros, kind, dimensions = struct.unpack(">HBB", data[:4])
    if zeros != 0 or kind != 8:
        raise ValueError("not an idx file of bytes")
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if values.size != np.prod(shape):
        raise ValueError(f"{values.size} values instead of {' x '.join(map(str, shape))}")
    return values.reshape(shape).copy()  # the bytes are read-only
