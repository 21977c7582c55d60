"""From a stored image to a training sample: seeded transforms, pixels in [0, 1], clear errors from worker processes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from compresslens.errors import UserError

_FIXED_TRANSFORMS = {"CenterCrop", "Compose", "ConvertImageDtype", "Grayscale", "Identity", "PILToTensor", "Pad"} | {
    *("Resize", "RGB", "ToDtype", "ToImage", "ToPILImage", "ToPureTensor")
}


class DataError(UserError):
    """A sample that cannot be used, with the file's name.

    Workers of a ``DataLoader`` send exceptions as text and the loader raises them anew with the worker's traceback in
    the message; this class takes its own message out of it again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class TransformedDataset(Dataset[Any]):
    """Applies transforms to the samples of another data set; the same sample at the same epoch always looks the same.

    Args:
        samples: items ``(image, label)`` or ``(image, label, mask)`` with image = uint8 tensor C×H×W or PIL image,
            mask = bool tensor H×W.
        transforms: ``torchvision.transforms.v2``, applied in turn to image and mask together.
        seed: the random state during the transforms is a function of (seed, epoch, index) only.

    Items are asked for by index (epoch 0) or by ``(epoch, index)`` and are ``(image, label[, mask])`` with image =
    float32 3×H×W in [0, 1].
    """

    def __init__(self, samples: Dataset[Any], transforms: Sequence[nn.Module] = (), seed: int = 0) -> None:
        self.samples = samples
        self.transforms = list(transforms)
        self.seed = seed
        self.random = not all(is_deterministic(transform) for transform in self.transforms)

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Any, ...]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not self.random:
            return self._sample(index)
        with forked_random_state((self.seed, epoch, index)):
            return self._sample(index)

    def _sample(self, index: int) -> tuple[Any, ...]:
        image, label, *masks = self.samples[index]
        if not self.transforms:
            return (pixels(image), int(label), *masks)
        from torchvision import tv_tensors

        # v2 tells images from masks by their type; masks travel as uint8 because resampling bool is not supported.
        sample = [tv_tensors.Image(rgb(image)), *(tv_tensors.Mask(mask.byte()[None]) for mask in masks)]
        for transform in self.transforms:
            sample = list(transform(*sample)) if masks else [transform(sample[0])]
        masks = [mask.as_subclass(Tensor)[0].bool() for mask in sample[1:]]
        return (pixels(sample[0]), int(label), *masks)


def rgb(image: Any) -> Tensor:
    """A PIL image of any mode, or a tensor C×H×W with C = 1 or 3, as tensor 3×H×W."""
    if not isinstance(image, Tensor):
        image = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return image.as_subclass(Tensor).expand(3, -1, -1)


def pixels(image: Any) -> Tensor:
    """An image as :func:`rgb` takes it, uint8 or float in [0, 1], as float32 3×H×W in [0, 1]."""
    image = rgb(image)
    if not image.is_floating_point():
        image = image.to(torch.float32).div_(torch.iinfo(image.dtype).max)
    return image.to(torch.float32).contiguous()


def collate(samples: list[tuple[Any, ...]]) -> tuple[Tensor, ...]:
    """A batch ``(images, labels[, masks])``.

    Raises:
        DataError: if the images differ in size.
    """
    shapes = {tuple(sample[0].shape[1:]) for sample in samples}
    if len(shapes) > 1:
        sizes = ", ".join(f"{height}x{width}" for height, width in sorted(shapes)[:3])
        raise DataError(f"The images of a batch differ in size ({sizes}); end the transforms with a crop or a resize.")
    return tuple(default_collate(samples))


def is_deterministic(transform: nn.Module) -> bool:
    """Whether a transform is known to do the same to every image; classes we don't know count as random."""
    known = type(transform).__name__ in _FIXED_TRANSFORMS and type(transform).__module__.startswith("torchvision.")
    if not known and type(transform) is not nn.Sequential and type(transform) is not nn.Identity:
        return False
    inner = getattr(transform, "transforms", None) or list(transform.children())
    return all(is_deterministic(module) for module in inner)


@contextmanager
def forked_random_state(entropy: tuple[int, ...]) -> Iterator[None]:
    """Seeds torch (CPU), numpy and Python inside the block, and leaves their global states as they were."""
    saved = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])
