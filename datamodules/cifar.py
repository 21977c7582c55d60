"""CIFAR-10 and CIFAR-100 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)."""

from __future__ import annotations

import io
import pickle
from typing import Any, ClassVar

import numpy as np

from compresslens.errors import UserError
from datamodules.arrays import ArrayDataModule


class CIFAR10(ArrayDataModule):
    """50,000 + 10,000 images 32×32 in 10 classes; the official test images are the test split.

    Args:
        root: folder that holds (or, with ``download``, gets) ``cifar-10-batches-py``.
        download: fetch the data with torchvision if it is not there.
        image_size: images are resized if it is not 32.
        validation_fraction: part of the official training images held out for validation, stratified by class.
        kwargs: as for ``ImageDataModule``.
    """

    folder: ClassVar[str] = "cifar-10-batches-py"
    files: ClassVar[dict[str, list[str]]] = {
        "train": [f"data_batch_{number}" for number in range(1, 6)],
        "test": ["test_batch"],
        "meta": ["batches.meta"],
    }
    names_key: ClassVar[str] = "label_names"
    labels_key: ClassVar[str] = "labels"
    class_count: ClassVar[int] = 10
    torchvision_name = "CIFAR10"

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
    def num_classes(self) -> int:
        """10 or 100; known before the download."""
        return self.class_count

    @property
    def class_names(self) -> list[str]:
        """The names in the data set's own order."""
        (name,) = self.files["meta"]
        names = list(self._unpickle(name).get(self.names_key, []))
        if len(names) != self.class_count:
            raise self._corrupt(name, f"{len(names)} class names")
        return names

    def missing(self) -> str | None:
        """Names the first missing file."""
        paths = [self.root / self.folder / name for names in self.files.values() for name in names]
        missing = [path for path in paths if not path.is_file()]
        if not missing:
            return None
        return (
            f"{missing[0]} is missing; data.root must be the folder that holds {self.folder}/, or set "
            "data.download: true to fetch it."
        )

    def read(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of the official part.

        Raises:
            UserError: if a file is damaged.
        """
        images, targets = [], []
        for name in self.files[part]:
            batch = self._unpickle(name)
            try:
                pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
                labels = np.asarray(batch[self.labels_key], dtype=np.int64)
            except (KeyError, ValueError, TypeError) as error:
                raise self._corrupt(name, f"{type(error).__name__}: {error}") from error
            if len(pixels) != len(labels) or not ((labels >= 0) & (labels < self.class_count)).all():
                raise self._corrupt(name, f"{len(pixels)} images, {len(labels)} labels")
            images.append(pixels)
            targets.append(labels)
        return np.concatenate(images), np.concatenate(targets)

    def _unpickle(self, name: str) -> dict[str, Any]:
        path = self.root / self.folder / name
        try:
            content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        except FileNotFoundError:
            raise UserError(f"{path} is missing; set data.download: true to fetch the data.") from None
        except Exception as error:  # a damaged pickle can raise anything
            raise self._corrupt(name, f"{type(error).__name__}: {error}") from error
        return content if isinstance(content, dict) else {}

    def _corrupt(self, name: str, reason: str) -> UserError:
        path = self.root / self.folder / name
        return UserError(f"{path} is damaged ({reason}); delete {path.parent} and set data.download: true.")


class CIFAR100(CIFAR10):
    """50,000 + 10,000 images 32×32 in 100 (fine) classes, in ``root/cifar-100-python``; otherwise as CIFAR10."""

    folder = "cifar-100-python"
    files: ClassVar[dict[str, list[str]]] = {"train": ["train"], "test": ["test"], "meta": ["meta"]}
    names_key = "fine_label_names"
    labels_key = "fine_labels"
    class_count = 100
    torchvision_name = "CIFAR100"


class _ArraysOnly(pickle.Unpickler):
    """Reads what the official files hold, arrays and plain containers; a pickle from elsewhere cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.startswith("numpy") and name in {"_reconstruct", "ndarray", "dtype"}) or (
            (module, name) == ("_codecs", "encode")
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in a CIFAR file")
