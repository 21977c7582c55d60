"""Transforms of images and masks together, their random state, and errors from workers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from compresslens.errors import UserError
from datamodules.transformed import (
    DataError,
    TransformedDataset,
    collate,
    forked_random_state,
    is_deterministic,
    pixels,
)
from tests.datamodules.tiny import SIZE, Squares

NEAREST = v2.InterpolationMode.NEAREST


class Coordinates(Dataset[Any]):
    """Images whose red channel is a mask's 255-fold."""

    def __init__(self, size: int = 16) -> None:
        self.mask = torch.zeros(size, size, dtype=torch.bool)
        self.mask[2:7, 1:12] = True

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        return (self.mask[None] * 255).to(torch.uint8).expand(3, -1, -1), index, self.mask


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [v2.RandomHorizontalFlip(p=1.0)],
        [v2.Resize(32, NEAREST), v2.RandomCrop(16, padding=2)],
        [
            v2.Compose(
                [
                    v2.RandomResizedCrop(16, interpolation=v2.InterpolationMode.NEAREST),
                    v2.ToDtype(torch.float32, scale=True),
                ]
            )
        ],
        [v2.RandomRotation(30)],
    ],
)
def test_masks_move_with_their_images(transforms: list[nn.Module]) -> None:
    data = TransformedDataset(Coordinates(), transforms)
    for index in range(len(data)):
        image, label, mask = data[(1, index)]
        assert image.shape == (3, 16, 16)
        assert image.dtype == torch.float32
        assert mask.dtype == torch.bool
        assert type(image) is type(mask) is Tensor
        assert label == index
        assert torch.equal(image[0] == 1, mask)


def test_a_sample_depends_on_seed_epoch_and_index_only() -> None:
    def look(seed: int, epoch: int, index: int) -> Tensor:
        data = TransformedDataset(Coordinates(), [v2.RandomCrop(16, padding=8), v2.GaussianNoise()], seed)
        torch.rand(int(torch.randint(100, ())))
        return data[(epoch, index)][0]

    base = look(0, 0, 0)
    assert torch.equal(base, look(0, 0, 0))
    for other in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        assert not torch.equal(base, look(*other))
    data = TransformedDataset(Coordinates(), [v2.GaussianNoise()])
    assert torch.equal(data[3][0], data[(0, 3)][0])


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def seed_everything() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)


def fail_inside() -> None:
    with forked_random_state((1, 2)):
        draws()
        raise RuntimeError("inside")


def test_the_global_random_state_is_left_alone() -> None:
    seed_everything()
    expected = draws()
    seed_everything()
    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert draws() == expected
    with forked_random_state((1, 2)):
        first = draws()
    with forked_random_state((1, 2)):
        assert draws() == first
    with forked_random_state((1, 3)):
        assert draws() != first


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_any_pil_image_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode)
    for transforms in ([], [v2.Resize((4, 6))]):
        sample = TransformedDataset([(image, 1)], transforms)[0]  # type: ignore[arg-type]
        assert sample[0].shape == (3, 4, 6)
        assert sample[0].dtype == torch.float32
        assert float(sample[0].min()) == pytest.approx(1.0)


def test_pixels_are_exact() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(pixels(levels), (levels.float() / 255).expand(3, -1, -1))
    assert torch.equal(pixels(levels.float() / 255), pixels(levels))
    torch.testing.assert_close(pixels(Image.fromarray(levels[0].numpy())), pixels(levels))


class Custom(nn.Module):
    """Of unknown randomness."""


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (v2.Resize(8), True),
        (v2.Compose([v2.Resize(8), v2.CenterCrop(8), v2.ToDtype(torch.float32, scale=True)]), True),
        (nn.Sequential(v2.Grayscale(3), v2.Pad(2)), True),
        (nn.Identity(), True),
        (v2.Compose([v2.Resize(8), v2.RandomHorizontalFlip()]), False),
        (nn.Sequential(v2.RandomHorizontalFlip()), False),
        (v2.ColorJitter(0.1), False),
        (v2.TrivialAugmentWide(), False),
        (v2.GaussianBlur(3), False),
        (v2.AugMix(), False),
        (v2.RandomApply([v2.Resize(8)]), False),
        (Custom(), False),
    ],
)
def test_deterministic_transforms_are_told_apart(transform: nn.Module, expected: bool) -> None:
    assert is_deterministic(transform) is expected


def test_images_of_different_sizes_are_an_error() -> None:
    with pytest.raises(UserError, match="differ in size \\(4x4, 4x5\\)"):
        collate([(torch.zeros(3, 4, 4), 0), (torch.zeros(3, 4, 5), 1)])


class Broken(Squares):
    def __getitem__(self, index: int) -> tuple[Any, ...]:
        raise DataError("The file a/b.jpg is no readable image (truncated).")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_keep_their_own_words_on_the_way_from_a_worker(num_workers: int) -> None:
    loader = DataLoader(TransformedDataset(Broken(4)), num_workers=num_workers, collate_fn=collate)
    with pytest.raises(UserError) as error:
        next(iter(loader))
    assert str(error.value) == "The file a/b.jpg is no readable image (truncated)."


def test_the_transforms_do_not_see_grey_images() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image.shape)
            return image

    TransformedDataset(Squares(3), [Spy()])[0]
    assert seen == [(3, SIZE, SIZE)]
