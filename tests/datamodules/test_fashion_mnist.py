"""Fashion-MNIST as torchvision and as Debian lay it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from compresslens.errors import UserError
from datamodules import FashionMNIST
from datamodules.fashion_mnist import read_idx
from tests.real_formats import idx, write_fashion_mnist


@pytest.fixture(scope="module", params=["torchvision", "debian", "gz_in_raw"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_fashion_mnist(tmp_path_factory.mktemp(request.param), debian=request.param == "debian")
    if request.param == "gz_in_raw":
        for path in (root / "FashionMNIST" / "raw").glob("*-ubyte"):
            path.unlink()
    return root


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> datasets.FashionMNIST:
    return datasets.FashionMNIST(write_fashion_mnist(tmp_path_factory.mktemp("official")), train=False)


def test_images_and_labels_are_torchvisions(root: Path, official: datasets.FashionMNIST) -> None:
    data = FashionMNIST(str(root))
    samples = data.dataset("test")
    assert data.labels("test").tolist() == official.targets.tolist()
    for index in range(len(official)):
        image, _ = samples[index]
        assert image.shape == (3, 32, 32)
        grey = (image * 255).round().to(torch.uint8)
        assert all(torch.equal(channel[2:30, 2:30], official.data[index]) for channel in grey)
        assert int(grey.sum()) == 3 * int(official.data[index].sum()), "black around it"
    assert data.class_names == official.classes


def test_splits(root: Path) -> None:
    data = FashionMNIST(str(root), validation_fraction=0.2)
    data.prepare_data()
    data.setup("fit")
    assert np.bincount(data.labels("val")).tolist() == [2] * 10
    assert np.bincount(data.labels("train")).tolist() == [8] * 10


@pytest.mark.parametrize("size", [28, 32, 48])
def test_image_sizes(root: Path, size: int, official: datasets.FashionMNIST) -> None:
    image, _ = FashionMNIST(str(root), image_size=size).dataset("test")[3]
    assert image.shape == (3, size, size)
    if size == 28:
        assert torch.equal((image[0] * 255).round().to(torch.uint8), official.data[3])


def test_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz is missing.*download: true.*dataset-fashion"):
        FashionMNIST(str(tmp_path)).prepare_data()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, debian=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (b"", whole[:100], b"nonsense" * 9, whole[:40] + b"\0" * 20 + whole[60:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.gz is damaged"):
            FashionMNIST(str(tmp_path)).setup("test")
    path.write_bytes(whole)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes((tmp_path / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(UserError, match=r"test files of FashionMNIST .* do not belong together"):
        FashionMNIST(str(tmp_path)).setup("test")


def test_idx() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(read_idx(idx(array)), array)
    with pytest.raises(ValueError, match="23 values instead of 2 x 3 x 4"):
        read_idx(idx(array)[:-1])
    with pytest.raises(ValueError, match="not an idx file"):
        read_idx(b"\x00\x00\x0d\x01" + b"\0" * 8)
