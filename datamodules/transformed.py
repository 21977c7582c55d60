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

_numpy_random: Any = np.random  # numpy's type stubs leave out the functions that exchange its generator
_numpy_generator = np.random.MT19937()


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
        image = rgb(image)
        if not masks:
            for transform in self.transforms:
                image = transform(image)
            return pixels(image), int(label)
        from torchvision import tv_tensors

        # v2 tells images from masks by their type; masks travel as uint8 because resampling bool is not supported.
        image, mask = tv_tensors.Image(image), tv_tensors.Mask(masks[0].byte()[None])
        for transform in self.transforms:
            image, mask = transform(image, mask)
        return pixels(image), int(label), mask.as_subclass(Tensor)[0].bool()


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
    known = known or type(transform) in (nn.Sequential, nn.Identity)
    return known and all(is_deterministic(part) for part in parts(transform))


def parts(transform: nn.Module) -> list[nn.Module]:
    """The transforms that a transform is composed of (v2.Compose does not register them as sub-modules)."""
    return list(getattr(transform, "transforms", None) or transform.children())


def contains(transform: nn.Module, name: str) -> bool:
    """Whether a transform, or one inside it, is of the class of that name."""
    return type(transform).__name__ == name or any(contains(part, name) for part in parts(transform))


@contextmanager
def forked_random_state(entropy: tuple[int, ...]) -> Iterator[None]:
    """Seeds torch (CPU), numpy and Python inside the block, and leaves their global states as they were."""
    torch_state, python_state = torch.default_generator.get_state(), random.getstate()
    numpy_generator = _numpy_random.get_bit_generator()
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    # Exchanging numpy's generator is twenty times as fast as saving and restoring its state.
    _numpy_random.set_bit_generator(_numpy_generator)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        random.setstate(python_state)
        _numpy_random.set_bit_generator(numpy_generator)
