"""Which tensor a map is made of: what is pooled, or a layer by its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslens.cams import class_activation_maps
from compresslens.cams.layers import Pass, tapped_pass
from compresslens.errors import UserError
from compresslens.networks import PixelNetwork, create_network
from compresslens.networks.modes import input_gradients
from tests.cams.networks import CLASSES, POOLED, Small, images, mean, small
from tests.lightning_modules.tiny import TinyNetwork


def run(network: nn.Module, x: Tensor, layer: str | None = None) -> Pass:
    with input_gradients(network):
        return tapped_pass(network, x, layer)


@pytest.mark.parametrize("count", [1, 3, 8])  # 8: as many as some weights have rows
@pytest.mark.parametrize("end", POOLED)
def test_the_map_that_is_pooled(end: Any, count: int) -> None:
    network, x = small(end), images(count)
    found = run(network, x)
    assert found.activations.is_leaf
    torch.testing.assert_close(found.activations.detach(), network.maps(x).detach(), rtol=0, atol=0)
    torch.testing.assert_close(found.logits.detach(), network(x).detach(), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(found.logits[:, 1].sum(), found.activations)
    maps = network.maps(x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(end(network, maps.clone())[:, 1].sum(), maps)
    torch.testing.assert_close(gradient, expected)


def test_of_a_map_that_shrinks_to_one_place_the_last_that_had_several() -> None:
    class Shrinking(Small):
        def forward(self, x: Tensor) -> Tensor:
            maps = self.maps(x)  # N×6×8×8
            corner = maps[:, :, 3:5, 3:5] * 2
            vector = F.max_pool2d(corner, 2) + F.avg_pool2d(corner, 2)
            return self.fc(F.adaptive_avg_pool2d(F.relu(vector), 3).mean((2, 3)))  # copied to 3×3 places

    network = Shrinking(mean).eval()
    found = run(network, images())
    torch.testing.assert_close(found.activations.detach(), 2 * network.maps(images()).detach()[:, :, 3:5, 3:5])
    (gradient,) = torch.autograd.grad(found.logits[:, 1].sum(), found.activations)
    assert (gradient.abs() > 0).sum((2, 3)).max() == 4, "both ways of pooling count"


def test_pooling_to_a_grid_in_the_middle_is_not_the_last() -> None:
    class Pyramid(Small):
        def forward(self, x: Tensor) -> Tensor:
            grids = F.interpolate(self.conv1(F.adaptive_avg_pool2d(x, 2)), (16, 16))
            return self.fc(F.relu(self.conv2(self.conv1(x) + grids)).mean((2, 3)))

    assert run(Pyramid(mean).eval(), images()).activations.shape == (3, 6, 8, 8)


@pytest.mark.slow
def test_small_images_of_a_vgg_network_end_in_one_place() -> None:
    network: Any = create_network("torchvision/vgg11", CLASSES, image_size=32).eval()
    found = run(network, images(2, 32))
    with torch.no_grad():
        expected = network.backbone.features[:-1](network.normalize(images(2, 32)))
    torch.testing.assert_close(found.activations.detach(), expected, rtol=0, atol=0)
    assert expected.shape == (2, 512, 2, 2)


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        ("test_resnet", "layer4"),
        ("test_efficientnet", "bn2"),
        pytest.param("test_convnext", "stages", marks=pytest.mark.slow),
        pytest.param("resnetv2_18", "norm", marks=pytest.mark.slow),
    ],
)
def test_a_name_gives_the_same_as_none(architecture: str, layer: str) -> None:
    network = create_network(architecture, CLASSES, image_size=64).eval()
    default, named = (class_activation_maps(network, images(size=64), layer=chosen) for chosen in (None, layer))
    torch.testing.assert_close(default, named, rtol=0, atol=1e-6)
    inside = class_activation_maps(network, images(size=64), layer=f"backbone.{layer}")
    assert torch.equal(inside, named)


def test_before_the_layer_nothing_is_kept() -> None:
    import weakref

    network, alive = TinyNetwork().eval(), []

    def note(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        alive.append(weakref.ref(output.untyped_storage()))

    left: list[int] = []
    handles = [layer.register_forward_hook(note) for layer in network.layer1]
    handles.append(
        network.classifier.register_forward_hook(lambda *_: left.append(sum(one() is not None for one in alive)))
    )
    run(network, images())
    run(network, images(), "layer2")
    for handle in handles:
        handle.remove()
    assert left == [0, 0]


def test_a_layer_that_runs_twice_counts_by_its_last_output() -> None:
    layer = nn.Conv2d(3, 3, 3, 1, 1)
    network = nn.Sequential(layer, nn.ReLU(inplace=True), layer, nn.Flatten(), nn.Linear(3 * 256, CLASSES)).eval()
    found = run(network, images(), "0")
    torch.testing.assert_close(found.activations.detach(), network[:3](images()).detach())


def test_a_layer_called_features_is_that_layer() -> None:
    backbone = nn.Sequential()
    backbone.add_module("features", nn.Conv2d(3, 4, 3))
    backbone.add_module("end", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)))
    network = PixelNetwork(backbone, (0.0,) * 3, (1.0,) * 3, "own", CLASSES, 16).eval()
    assert run(network, images(), "features").activations.shape == (3, 4, 14, 14)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_unknown_layers() -> None:
    with pytest.raises(UserError, match=r"there is no layer 'layer3' in TinyNetwork\. Nearest: layer2, layer1"):
        class_activation_maps(TinyNetwork(), images(), layer="layer3")


def test_layers_without_a_map() -> None:
    with pytest.raises(UserError, match="layer 'classifier' returns 3×7, not a map N×C×h×w with h·w > 1"):
        class_activation_maps(TinyNetwork(), images(), layer="classifier")
    network = nn.Sequential(nn.Flatten(), nn.LSTM(768, 4))
    with pytest.raises(UserError, match="layer '1' returns a tuple, not a tensor: name a layer inside it"):
        class_activation_maps(network, images(), layer="1")


def test_layers_that_do_not_matter() -> None:
    class Idle(Small):
        def forward(self, x: Tensor) -> Tensor:
            self.conv1(x)
            return self.fc(F.relu(self.conv2(x.repeat(1, 3, 1, 1)[:, :8])).mean((2, 3)))

    network = Idle(mean)
    with pytest.raises(UserError, match="layer 'scores' does not run"):
        class_activation_maps(network, images(), layer="scores")
    with pytest.raises(UserError, match="none reaches layer 'conv1' from the logits: name another"):
        class_activation_maps(network, images(), layer="conv1")


def test_networks_without_a_map() -> None:
    """The first have no convolution: what they pool, or flatten, is the image. The last sees one pixel."""
    pooled = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3, CLASSES))
    flattened = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES))
    for network, size in ((pooled, 16), (flattened, 16), (TinyNetwork(), 1)):
        with pytest.raises(UserError, match=r"no map N×C×h×w .* convolutional networks; if it is one, name a layer"):
            class_activation_maps(network, images(size=size))
