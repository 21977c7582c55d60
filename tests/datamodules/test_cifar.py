"""CIFAR-10 and CIFAR-100 from their own files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from compresslens.errors import UserError
from datamodules import CIFAR10, CIFAR100
from tests.real_formats import CIFAR10_NAMES, write_cifar10, write_cifar100


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar100(write_cifar10(tmp_path_factory.mktemp("cifar")))


def torchvision_data(name: str, root: Path, monkeypatch: pytest.MonkeyPatch, train: bool) -> Any:
    """The oracle; it compares checksums with the official ones, which small data cannot have."""
    for module in (datasets.cifar, datasets.utils):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: os.path.isfile(path))
    return getattr(datasets, name)(root, train=train)


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_images_and_labels_are_torchvisions(kind: type[CIFAR10], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = kind(str(root), validation_fraction=0.3)
    expected = torchvision_data(kind.__name__, root, monkeypatch, train=False)
    samples = data.dataset("test")
    assert data.labels("test").tolist() == expected.targets
    for index in range(0, len(expected), 7):
        image, label = samples[index]
        assert torch.equal(
            (image * 255).round().to(torch.uint8), torch.from_numpy(expected.data[index]).permute(2, 0, 1)
        )
        assert label == expected.targets[index]
    official = torchvision_data(kind.__name__, root, monkeypatch, train=True)
    images = [data.dataset(split).samples.images for split in ("train", "val")]  # type: ignore[attr-defined]
    ours = torch.cat(images).permute(0, 2, 3, 1).numpy()
    assert sorted(map(bytes, ours)) == sorted(map(bytes, official.data))
    assert len(images[1]) == round(0.3 * len(official.data)) or kind is CIFAR100
    assert data.class_names == official.classes
    assert data.num_classes == len(official.classes)


def test_the_validation_split_is_stratified_and_seeded(root: Path) -> None:
    data = CIFAR10(str(root), validation_fraction=0.2)
    assert np.bincount(data.labels("val")).tolist() == [2] * 10
    assert np.bincount(data.labels("train")).tolist() == [8] * 10
    other = CIFAR10(str(root), validation_fraction=0.2, seed=1)
    assert not torch.equal(data.dataset("val")[0][0], other.dataset("val")[0][0])


def test_names_and_loaders(root: Path) -> None:
    data = CIFAR10(str(root), batch_size=16)
    assert data.class_names == CIFAR10_NAMES
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader()))[0].shape == (16, 3, 32, 32)


def test_another_image_size_resizes(root: Path) -> None:
    assert CIFAR10(str(root), image_size=20).dataset("test")[0][0].shape == (3, 20, 20)


def test_missing_data_says_what_is_expected(tmp_path: Path) -> None:
    data = CIFAR10(str(tmp_path / "nowhere"))
    assert data.num_classes == 10
    with pytest.raises(UserError, match=r"nowhere/cifar-10-batches-py/data_batch_1 is missing.*data\.download: true"):
        data.prepare_data()
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(UserError, match="data_batch_4 is missing"):
        CIFAR10(str(tmp_path)).setup("fit")


def test_download_is_left_to_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: Path, download: bool) -> None:
        write_cifar10(Path(root))

    monkeypatch.setattr(datasets, "CIFAR10", fetch)
    data = CIFAR10(str(tmp_path / "new"), download=True)
    data.prepare_data()
    assert len(data.dataset("test")) == 40

    def fail(root: Path, download: bool) -> None:
        raise OSError("no network")

    monkeypatch.setattr(datasets, "CIFAR10", fail)
    with pytest.raises(UserError, match=r"The download of CIFAR10 to .* failed: no network"):
        CIFAR10(str(tmp_path / "other"), download=True).prepare_data()


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("false",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EOFError"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})[:-50], "damaged"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}), "KeyError"),
        (pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}), "ValueError"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "2 images, 1 labels"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "1 images, 1 labels"),
        (pickle.dumps(Evil()), "system does not belong in a CIFAR file"),
        (pickle.dumps([1]), "KeyError"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match="test_batch is damaged") as error:
        CIFAR10(str(tmp_path)).setup("test")
    assert reason in str(error.value)
