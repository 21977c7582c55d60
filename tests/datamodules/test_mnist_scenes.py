from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compresslens.errors import UserError
from datamodules import MNISTScenes, mnist_scenes
from datamodules.mnist_scenes import CLASSES, PHOTO_COLUMNS, SceneDataset, SceneStyle, digit_indices, load_digits

SPLITS = ("train", "val", "test")
WIDTH, HEIGHT = 640, 427


def style(**options: Any) -> SceneStyle:
    defaults = {"image_size": 32, "blending": "paste", "dimming": (0.3, 0.6), "digit_size": (0.5, 0.7), "shortcut": 0.0}
    return SceneStyle(**{**defaults, **options})


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 training, 5 validation and 5 test digits of each class."""
    monkeypatch.setattr(mnist_scenes, "DIGITS_PER_CLASS", {"train": 20, "val": 5, "test": 5})


@pytest.fixture
def marked_photos(monkeypatch: pytest.MonkeyPatch, few: None) -> None:
    """Every pixel says which photo and which column it is of: 100 for the second photo, column % 256, column // 256."""

    def photo(number: int) -> np.ndarray:
        pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        pixels[..., 0] = 100 * number
        pixels[..., 1] = np.arange(WIDTH) % 256
        pixels[..., 2] = np.arange(WIDTH) // 256
        return pixels

    monkeypatch.setattr(mnist_scenes, "load_photos", lambda: [photo(0), photo(1)])


def backgrounds(dataset: SceneDataset) -> tuple[np.ndarray, np.ndarray]:
    """Photo, and range of columns, of each scene made of the marked photos without dimming (N, N×2)."""
    photos, columns = [], []
    for image in dataset.images.numpy().astype(int):
        border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
        plain = border[:, (border[0] % 100 == 0) & (border[2] < 3)]  # no ink of the digit on it
        column = plain[1] + 256 * plain[2]
        photos.append(plain[0].max() // 100)
        columns.append([column.min(), column.max()])
    return np.array(photos), np.array(columns)


# The digits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_disjoint_and_balanced(seed: int) -> None:
    _, labels = load_digits()
    parts = [digit_indices(labels, split, seed) for split in SPLITS]
    assert sorted(np.concatenate(parts)) == list(range(5000))
    for part, count in zip(parts, (350, 50, 100), strict=True):
        assert np.bincount(labels[part]).tolist() == [count] * CLASSES


def test_another_seed_splits_otherwise() -> None:
    _, labels = load_digits()
    assert set(digit_indices(labels, "test", 0)) != set(digit_indices(labels, "test", 1))


def test_a_scene_depends_on_seed_split_and_index_only(few: None) -> None:
    one, again, longer = (SceneDataset("train", style(), 0, repeats) for repeats in (1, 1, 2))
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.masks, again.masks)
    assert len(longer) == 2 * len(one) == 400
    assert torch.equal(longer.images[:200], one.images), "more scenes of each digit leave the first ones alone"
    assert (longer.digits[200:] == one.digits).all()
    assert not any(torch.equal(a, b) for a, b in zip(longer.images[200:], one.images, strict=True)), "at other places"
    other = SceneDataset("train", style(), 1)
    assert not any(torch.equal(a, b) for a, b in zip(other.images, one.images, strict=True))


# The photographs ------------------------------------------------------------------------------------------------------


def test_splits_share_no_part_of_the_photographs(marked_photos: None) -> None:
    seen = {}
    for split in SPLITS:
        photos, columns = backgrounds(SceneDataset(split, style(dimming=(1, 1), shortcut=1.0), 0))
        left, right = (fraction * WIDTH for fraction in PHOTO_COLUMNS[split])
        assert columns[:, 0].min() >= left, split
        assert columns[:, 1].max() < right, split
        assert set(photos) == {0, 1}
        seen[split] = (left, right)
    assert seen["train"][1] <= seen["val"][0] < seen["val"][1] <= seen["test"][0]


def strips(photos: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The class whose part of the training photographs the background lies in, or -1 (N)."""
    width = PHOTO_COLUMNS["train"][1] * WIDTH // 5
    first, last = (columns // width).T
    return np.where(first == last, photos * 5 + first, -1).astype(int)


@pytest.mark.parametrize(("shortcut", "least", "most"), [(1.0, 1.0, 1.0), (0.5, 0.45, 0.65), (0.0, 0.0, 0.15)])
def test_the_shortcut_ties_the_background_to_the_class(
    marked_photos: None, shortcut: float, least: float, most: float
) -> None:
    dataset = SceneDataset("train", style(dimming=(1, 1), shortcut=shortcut), 0)
    tied = (strips(*backgrounds(dataset)) == dataset.targets).mean()
    assert least <= tied <= most


@pytest.mark.parametrize("split", ["val", "test"])
def test_only_training_is_biased(marked_photos: None, split: Any) -> None:
    biased, plain = (SceneDataset(split, style(dimming=(1, 1), shortcut=shortcut), 0) for shortcut in (1.0, 0.0))
    assert torch.equal(biased.images, plain.images)
    photos, _ = backgrounds(biased)
    by_class = [photos[biased.targets == label].mean() for label in range(CLASSES)]
    assert 0 < np.mean(by_class) < 1
    assert len(set(by_class[:5])) > 1, "both photographs behind every class"


def test_held_out_digits_can_have_the_backgrounds_of_training(marked_photos: None) -> None:
    biased = SceneDataset("test", style(dimming=(1, 1), shortcut=1.0), 0, backgrounds="train")
    own = SceneDataset("test", style(dimming=(1, 1), shortcut=1.0), 0)
    assert (biased.digits == own.digits).all()
    assert (strips(*backgrounds(biased)) == biased.targets).all()
    assert torch.equal(own.images, SceneDataset("test", style(dimming=(1, 1)), 0, backgrounds="test").images)
    plain = SceneDataset("test", style(dimming=(1, 1)), 0, backgrounds="train")
    assert (strips(*backgrounds(plain)) == plain.targets).mean() <= 0.25


def test_without_a_shortcut_every_class_sees_both_photographs(marked_photos: None) -> None:
    dataset = SceneDataset("train", style(dimming=(1, 1)), 0)
    photos, columns = backgrounds(dataset)
    for label in range(CLASSES):
        assert 0.1 < photos[dataset.targets == label].mean() < 0.9
        assert np.ptp(columns[dataset.targets == label]) > 250


# What a scene looks like ----------------------------------------------------------------------------------------------


def test_the_mask_is_the_digit(few: None) -> None:
    black = SceneDataset("val", style(dimming=(0, 0)), 0)
    assert torch.equal(black.masks, black.images[:, 0] > 127), "on black the image is the digit itself"
    assert torch.equal(black.images[:, 0], black.images[:, 2])
    dataset = SceneDataset("val", style(), 0)
    assert torch.equal(dataset.masks, black.masks), "whatever is behind it"
    for image, mask in zip(dataset.images, dataset.masks, strict=True):
        assert 10 < mask.sum() < 0.5 * mask.numel()
        assert image[:, mask].min() >= 127
        assert image[:, ~mask].float().mean() < image[:, mask].float().mean() - 40


def test_digits_are_recognizable_in_the_mask(few: None) -> None:
    """The mask of a scene, cut out and scaled, is like the digit that it was made of, and like few others."""
    dataset, (digits, _) = SceneDataset("val", style(image_size=64), 0), load_digits()
    originals = torch.from_numpy(digits[dataset.digits] > 127).float().flatten(1)
    found = []
    for mask in dataset.masks:
        rows, columns = mask.any(1).nonzero()[[0, -1], 0], mask.any(0).nonzero()[[0, -1], 0]
        cut = mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1].float()[None, None]
        found.append(torch.nn.functional.interpolate(cut, (20, 20), mode="area")[0, 0].flatten())
    boxes = []
    for original in originals.view(-1, 28, 28):
        rows, columns = original.any(1).nonzero()[[0, -1], 0], original.any(0).nonzero()[[0, -1], 0]
        cut = original[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1][None, None]
        boxes.append(torch.nn.functional.interpolate(cut, (20, 20), mode="area")[0, 0].flatten())
    distances = torch.cdist(torch.stack(found), torch.stack(boxes))
    assert (distances.argmin(1) == torch.arange(len(distances))).float().mean() > 0.95


@pytest.mark.parametrize("kind", ["paste", "difference"])
def test_blending(few: None, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    grey = np.full((HEIGHT, WIDTH, 3), 200, dtype=np.uint8)
    monkeypatch.setattr(mnist_scenes, "load_photos", lambda: [grey, grey])
    ink = SceneDataset("val", style(dimming=(0, 0)), 0).images / 255
    images = SceneDataset("val", style(dimming=(0.5, 0.5), blending=kind), 0).images
    expected = 100 * (1 - ink) + 255 * ink if kind == "paste" else (100 - 255 * ink).abs()
    assert (images - expected).abs().max() <= 1


def test_digit_sizes_and_places_vary(few: None) -> None:
    dataset = SceneDataset("train", style(image_size=64, digit_size=(0.5, 0.75)), 0)
    heights, tops = [], []
    for mask in dataset.masks:
        rows = mask.any(1).nonzero()[:, 0]
        heights.append(int(rows[-1] - rows[0]) + 1)
        tops.append(int(rows[0]))
    assert max(heights) <= 0.75 * 64
    assert min(heights) >= 0.5 * 64 * 0.4, "a digit fills 20 of its box's 28 rows, a lying one fewer"
    assert np.ptp(heights) > 10
    assert np.ptp(tops) > 15


@pytest.mark.parametrize("size", [16, 32, 64, 65, 96, 224])
def test_sizes(few: None, size: int) -> None:
    for split in SPLITS:
        dataset = SceneDataset(split, style(image_size=size, shortcut=0.5), 0)
        assert dataset.images.shape[1:] == (3, size, size)
        assert dataset.masks.shape[1:] == (size, size)
        assert 0.02 < dataset.masks.float().mean() < 0.3


def test_larger_scenes_show_the_same_photographs_enlarged(few: None) -> None:
    """The contrast of neighbouring pixels falls, what the whole scene shows does not."""
    small, large = (SceneDataset("val", style(image_size=size), 0) for size in (64, 224))
    assert small.images.float().mean().item() == pytest.approx(large.images.float().mean().item(), rel=0.1)
    assert small.images.float().diff(dim=3).abs().mean() > 1.5 * large.images.float().diff(dim=3).abs().mean()


# The data module ------------------------------------------------------------------------------------------------------


def test_batches(few: None) -> None:
    data = MNISTScenes(image_size=32, scenes_per_digit=2, batch_size=16, eval_batch_size=20)
    data.setup("fit")
    data.setup("test")
    assert data.class_names == list("0123456789")
    assert data.num_classes == 10
    assert data.deterministic_training_images
    for loader, batches, size in (
        (data.train_dataloader(), 25, 16),
        (data.val_dataloader(), 3, 20),
        (data.test_dataloader(), 3, 20),
    ):
        assert len(loader) == batches
        images, labels, masks = next(iter(loader))
        assert images.shape == (size, 3, 32, 32)
        assert images.dtype == torch.float32
        assert 0 <= images.min() < 0.2
        assert 0.9 < images.max() <= 1
        assert labels.shape == (size,)
        assert labels.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() <= 9
        assert masks.shape == (size, 32, 32)
        assert masks.dtype == torch.bool
    assert len(data.probe_dataset("val")) == 50
    assert np.bincount(data.labels("test")).tolist() == [5] * 10


def test_full_splits() -> None:
    data = MNISTScenes(image_size=32, scenes_per_digit=1)
    assert {split: len(data.dataset(split)) for split in SPLITS} == {"train": 3500, "val": 500, "test": 1000}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 15}, "image_size must be at least 16"),
        ({"scenes_per_digit": 0}, "scenes_per_digit at least 1"),
        ({"dimming": (0.6, 0.3)}, r"dimming is \[0.6, 0.3\]; give two fractions in \[0, 1\], the smaller first"),
        ({"dimming": (-0.1, 0.3)}, "dimming is"),
        ({"digit_size": (0.5, 1.1)}, "digit_size is"),
        ({"image_size": 16, "digit_size": (0.4, 0.5)}, "not legible"),
        ({"shortcut": 1.5}, "shortcut is 1.5; it is a probability"),
        ({"shortcut": -0.5}, "shortcut is -0.5"),
        ({"blending": "multiply"}, "blending is 'multiply'"),
        ({"seed": -1}, "data.seed is -1"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MNISTScenes(**options)
