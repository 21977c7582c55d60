"""ResNets for small images."""

from typing import Any

import pytest
import torch
from torch import nn

from compresslens.errors import UserError
from compresslens.networks import create_network, feature_taps


def map_size(network: nn.Module, side: int) -> int:
    with feature_taps(network.eval(), ["layer4"]) as taps, torch.no_grad():
        network(torch.rand(1, 3, side, side))
    return taps["layer4"].shape[-1]


@pytest.mark.parametrize("architecture", ["resnet18", "torchvision/resnet18", "resnet26d"])
@pytest.mark.parametrize(("stem", "expected"), [("imagenet", 2), ("small_stride2", 4), ("small", 8)])
def test_each_stem_gives_its_map_size(architecture: str, stem: Any, expected: int) -> None:
    network = create_network(architecture, num_classes=3, image_size=64, stem=stem)
    assert map_size(network, 64) == expected


@pytest.mark.parametrize(("image_size", "kernel"), [(32, 3), (64, 3), (65, 7), (224, 7)])
def test_auto_depends_on_the_image_size(image_size: int, kernel: int) -> None:
    network: Any = create_network("resnet18", num_classes=3, image_size=image_size)
    assert network.backbone.conv1.kernel_size == (kernel, kernel)
    assert isinstance(network.backbone.maxpool, nn.Identity if kernel == 3 else nn.MaxPool2d)


def test_auto_leaves_other_architectures_alone() -> None:
    network: Any = create_network("mobilenetv3_small_050", num_classes=3, image_size=32)
    assert network.backbone.conv_stem.stride == (2, 2)


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError, match="ResNets only, and 'densenet121' is none"):
        create_network("densenet121", num_classes=3, stem="small")
    with pytest.raises(UserError, match="unknown stem 'tiny'"):
        create_network("resnet18", num_classes=3, stem="tiny")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="output_stride is for ResNets only"):
        create_network("densenet121", num_classes=3, output_stride=16)
    with pytest.raises(UserError, match="output_stride is 4"):
        create_network("resnet18", num_classes=3, output_stride=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "resnet26d", "torchvision/resnet50", "res2net50d"])
@pytest.mark.parametrize(("output_stride", "expected"), [(32, 2), (16, 4), (8, 8)])
def test_output_stride_refines_the_last_maps(architecture: str, output_stride: Any, expected: int) -> None:
    network = create_network(architecture, 3, image_size=64, stem="imagenet", output_stride=output_stride)
    assert map_size(network, 64) == expected


def test_output_stride_changes_no_parameter() -> None:
    plain = create_network("resnet26d", num_classes=3)
    fine = create_network("resnet26d", num_classes=3, output_stride=16)
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (plain, fine)]
    assert shapes[0] == shapes[1]
