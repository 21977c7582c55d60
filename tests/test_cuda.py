"""What is measured on CUDA is what is measured on the CPU. Without CUDA nothing of this runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from callbacks import TSNE, Accuracy, ClassActivationMaps, Results
from compresslens.attacks import carlini_wagner_l2
from compresslens.cams import Method, class_activation_maps
from compresslens.cams import columns as per_image
from compresslens.embeddings.features import tapped_features
from compresslens.networks import PixelNetwork
from compresslens.quantization import calibrate, fake_quantize
from lightning_modules import ImageClassifier
from tests.lightning_modules.tiny import NoiseData, trainer
from tests.quantization.networks import images as random_images
from tests.quantization.networks import residual

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")
DEVICE = "cuda"
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Convolutions in TF32, as cuDNN has them by default, have three digits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def network() -> PixelNetwork:
    return residual()


@pytest.fixture
def images() -> Tensor:
    return random_images(8)


def there(module: nn.Module) -> Any:
    return copy.deepcopy(module).to(DEVICE)


def predicted(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).argmax(1)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu(), expected, **CLOSE)


@pytest.mark.parametrize("solver", ["projection", "adam"])
def test_attack(network: PixelNetwork, images: Tensor, solver: Any) -> None:
    labels = predicted(network, images)
    expected = carlini_wagner_l2(network, images, labels, solver=solver)
    other = there(network)
    found = carlini_wagner_l2(other, images.to(DEVICE), labels.to(DEVICE), solver=solver)
    assert expected.success.all()
    assert torch.equal(found.success.cpu(), expected.success)
    assert_same(found.l2, expected.l2)
    assert (predicted(other, found.adversarials).cpu() != labels).all()


@pytest.mark.parametrize("method", get_args(Method))
def test_maps(network: PixelNetwork, images: Tensor, method: Any) -> None:
    classes = predicted(network, images)
    expected = class_activation_maps(network, images, classes, method=method)
    assert_same(class_activation_maps(there(network), images.to(DEVICE), classes.to(DEVICE), method=method), expected)


def columns(network: PixelNetwork, images: Tensor, classes: Tensor, device: str) -> dict[str, Any]:
    """All that is noted of images, by maps that are the same everywhere."""
    maps, masks = images.mean(1), images[:, 0] > 0.7
    rows, indices = np.arange(len(images)) % 2 == 0, np.arange(len(images))
    found: dict[str, Any] = {}
    for prefix, of_network in ({"": maps} | per_image.baseline_maps(indices, masks)).items():
        assert of_network.device.type == device
        found |= per_image.localization_columns(prefix, of_network, masks)
        found |= per_image.pixel_columns(prefix, of_network, masks)
    found |= per_image.area_column(masks) | per_image.similarity_columns("", maps, images[:, 1])
    found |= per_image.faithfulness_columns("", network, images, classes, maps, rows)
    found |= per_image.control_columns("", network, images, classes, maps, rows, indices)

    def maps_of(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        return class_activation_maps(network, images, classes)

    return found | per_image.sanity_columns(maps_of, network, images, classes, rows)


def test_measures_of_maps(network: PixelNetwork, images: Tensor) -> None:
    classes = predicted(network, images)
    expected = columns(network, images, classes, "cpu")
    found = columns(there(network), images.to(DEVICE), classes.to(DEVICE), DEVICE)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, **CLOSE, err_msg=name)


def test_features(network: PixelNetwork, images: Tensor) -> None:
    taps = []
    for module, batch in ((network, images), (there(network), images.to(DEVICE))):
        with torch.no_grad(), tapped_features(module) as tap:
            module(batch)
            taps.append(dict(tap))
    expected, found = taps
    assert set(found) == {"features", "logits"}
    for name in found:
        assert_same(found[name], expected[name])


def test_twin_with_fake_quantizers(network: PixelNetwork, images: Tensor) -> None:
    """Prepared and calibrated on its device. A value between two codes may get either: weights that differ by 3e-7
    shift single logits, of a range of 8, by up to 0.1, and most by less than 1e-5."""
    twins = [network, there(network)]
    logits = []
    for twin, batch in zip(twins, (images, images.to(DEVICE)), strict=True):
        fake_quantize(twin)
        calibrate(twin, [batch])
        with torch.no_grad():
            logits.append(twin.eval()(batch))
    ranges = [[q.scale.double().cpu() for q in twin.backbone.activation_quantizers()] for twin in twins]
    torch.testing.assert_close(ranges[1], ranges[0], **CLOSE)
    assert logits[1].device.type == DEVICE
    differences = (logits[1].cpu() - logits[0]).abs()
    assert differences.median() < 1e-3
    assert differences.max() < 0.3


def test_probes(tmp_path: Path, network: PixelNetwork) -> None:
    """Under Lightning, from the batch to the file."""
    written = []
    for accelerator in ("cpu", DEVICE):
        module = ImageClassifier(copy.deepcopy(network))
        module.set_reference(residual(1))
        maps = ClassActivationMaps(faithfulness_samples=8, sanity_samples=4, mosaics={}, method="grad_cam")
        probes = [Accuracy(), TSNE(perplexity=4, neighbours=3), maps, Results()]
        loop = trainer(tmp_path / accelerator, probes, accelerator=accelerator)
        loop.test(module, datamodule=NoiseData(), verbose=False)
        written.append(json.loads((tmp_path / accelerator / "results.json").read_text()))
    expected, found = (results["metrics"] for results in written)
    assert found.keys() == expected.keys()
    for name in ("accuracy/brier", "embedding/silhouette", "embedding/cka", "cam/similarity", "cam/insertion_auc"):
        assert found[name]["value"] == pytest.approx(expected[name]["value"], rel=1e-3, abs=1e-3), name
        assert found[name]["n"] == expected[name]["n"]
