"""Networks by name: families, normalization, refusals."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.transforms.functional import normalize

from compresslens.errors import UserError
from compresslens.networks import PixelNetwork, create_network

FAMILIES = [
    "resnet18",
    "resnet18.a1_in1k",
    "timm/mobilenetv3_small_050",
    "tf_efficientnet_lite0",
    "convnext_atto",
    "densenet121",
    "regnetx_002",
    "repvgg_a0",
    "torchvision/resnet18",
    "mobilenet_v2",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "torchvision/mnasnet0_5",
]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_maps_pixels_to_logits(architecture: str) -> None:
    network = create_network(architecture, num_classes=7, image_size=64)
    images = torch.rand(2, 3, 64, 64)
    assert network(images).shape == (2, 7)
    assert network.eval()(images).shape == (2, 7)
    assert (network.architecture, network.num_classes, network.image_size) == (architecture, 7, 64)


@pytest.mark.parametrize("architecture", ["googlenet", "torchvision/inception_v3"])
def test_networks_with_auxiliary_classifiers_return_a_tensor_in_training(architecture: str) -> None:
    network = create_network(architecture, num_classes=3)
    assert network.train()(torch.rand(2, 3, 96, 96)).shape == (2, 3)


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_networks_that_are_no_cnns_are_refused(architecture: str) -> None:
    with pytest.raises(UserError, match=f"'{architecture}' is not a CNN"):
        create_network(architecture, num_classes=3)


@pytest.mark.parametrize(
    ("architecture", "nearest"),
    [
        ("resnte18", "resnet18"),
        ("timm/resnt18", "timm/resnet18"),
        ("torchvision/resnet19", "torchvision/resnet18"),
        ("squeezenet1_9", "squeezenet1_"),
        ("resnet18.a1_in2k", r"resnet18\.a1_in1k"),
    ],
)
def test_an_unknown_name_gives_the_nearest(architecture: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"Nearest: {nearest}"):
        create_network(architecture, num_classes=3)


def test_a_plain_name_is_timms_and_a_prefix_settles_it() -> None:
    assert type(create_network("resnet18", 3).backbone).__module__.startswith("timm.")
    assert type(create_network("torchvision/resnet18", 3).backbone).__module__.startswith("torchvision.")


def test_a_cnn_with_several_classifiers_is_refused() -> None:
    with pytest.raises(UserError, match=r"RepVit has no single .* layer as its classifier"):
        create_network("repvit_m0_9", num_classes=3)


def test_a_class_count_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="num_classes is 0"):
        create_network("resnet18", num_classes=0)


@pytest.mark.parametrize(
    ("architecture", "mean", "std"),
    [
        ("tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("torchvision/resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_normalization_is_the_architectures(architecture: str, mean: tuple[float], std: tuple[float]) -> None:
    network = create_network(architecture, num_classes=3, image_size=96).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), network.backbone(normalize(images, list(mean), list(std))))


def test_normalization_of_torchvisions_inception_equals_its_own_input_transform() -> None:
    network = create_network("googlenet", num_classes=3)
    reference: Any = copy.deepcopy(network.backbone)
    images = torch.rand(1, 3, 8, 8)
    reference.transform_input = True
    expected = reference._transform_input(normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(network.normalize(images), expected, atol=1e-6, rtol=0)


def test_normalization_is_not_in_the_state_dict() -> None:
    network = create_network("resnet18", num_classes=3)
    assert all(key.startswith("backbone.") for key in network.state_dict())


def test_the_network_copies_and_exports() -> None:
    network = create_network("resnet18", num_classes=3, image_size=32).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(copy.deepcopy(network)(images), expected)
        exported = torch.export.export(network, (images,))
        torch.testing.assert_close(exported.module()(images), expected)


def test_any_backbone_can_be_wrapped() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    network = PixelNetwork(backbone, (0.0,) * 3, (1.0,) * 3, "mine", num_classes=5, image_size=2)
    images = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(network(images), backbone(images))


def test_importing_loads_no_slow_library() -> None:
    code = "import sys, compresslens.networks; print({'timm', 'torchvision', 'safetensors'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def hub_cache(monkeypatch: pytest.MonkeyPatch, file: str | None) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: file)


def test_hub_weights_come_from_its_cache_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import save_file

    source: Any = timm.create_model("resnet18")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    hub_cache(monkeypatch, str(tmp_path / "model.safetensors"))
    network: Any = create_network("resnet18", num_classes=4, weights="timm", image_size=32)
    assert network.backbone.conv1.weight.shape == (64, 3, 3, 3)
    assert "classifier for 4 is newly initialised" in caplog.text
    assert "'small' stem: it is newly initialised" in caplog.text
    torch.testing.assert_close(network.backbone.layer4.state_dict(), source.layer4.state_dict())
    with pytest.raises(UserError, match="1000 classes, but 4"):
        create_network("resnet18", num_classes=4, weights="timm", replace_head=False)


def test_hub_weights_offline_fail_soon_and_name_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(monkeypatch, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"does not answer: use weights 'package' .*, the path of a file, or none"):
        create_network("resnet18", num_classes=3, weights="timm")


def test_an_unreachable_hub_is_noticed_before_its_client_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(monkeypatch, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # refuses connections
    with pytest.raises(UserError, match="does not answer"):
        create_network("resnet18", num_classes=3, weights="timm")


def test_a_failed_download_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(monkeypatch, None)
    monkeypatch.setattr("compresslens.networks.create._hub_answers", lambda: True)

    def fail(*_args: Any, **_options: Any) -> None:
        raise OSError("disk full\nsecond line")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(UserError, match=r"could not be had \(disk full\): use weights"):
        create_network("resnet18", num_classes=3, weights="timm")


@pytest.mark.parametrize("architecture", ["torchvision/resnet18", "resnet18"])
def test_hub_weights_that_do_not_exist_are_not_replaced_by_random_ones(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models._pretrained.PretrainedCfg.has_weights", property(lambda _: False))
    with pytest.raises(UserError, match=r"has no weights"):
        create_network(architecture, num_classes=3, weights="timm")


def test_torchvision_names_agree_with_torchvision() -> None:
    keys = torchvision_resnet18().state_dict().keys()
    assert create_network("torchvision/resnet18", 3).backbone.state_dict().keys() == keys
