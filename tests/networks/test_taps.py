"""Taps: values, gradients, and that they leave no trace."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.networks import PixelNetwork, classifier_name, create_network, feature_taps, replace_classifier
from compresslens.networks.taps import find_layer


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return create_network("resnet18", num_classes=3, image_size=32).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def up_to_layer3(network: Any, images: Tensor) -> Tensor:
    b = network.backbone
    x = b.maxpool(b.act1(b.bn1(b.conv1(network.normalize(images)))))
    return b.layer3(b.layer2(b.layer1(x)))


def from_layer3(network: Any, maps: Tensor) -> Tensor:
    return network.backbone.fc(network.backbone.layer4(maps).mean((2, 3)))


def test_values_equal_a_manual_forward(network: Any, images: Tensor) -> None:
    with torch.no_grad():
        with feature_taps(network, ["features", "layer3", "backbone.layer3.0", "normalize"]) as taps:
            logits = network(images)
        layer3 = up_to_layer3(network, images)
        torch.testing.assert_close(taps["layer3"], layer3, atol=0, rtol=0)
        torch.testing.assert_close(taps["normalize"], network.normalize(images), atol=0, rtol=0)
        features = network.backbone.layer4(layer3).mean((2, 3))
        torch.testing.assert_close(taps["features"], features)
        torch.testing.assert_close(logits, network.backbone.fc(features))
        torch.testing.assert_close(logits, network(images), atol=0, rtol=0)
    assert hooks(network) == 0


def test_a_layer_followed_by_an_in_place_one_keeps_its_values(network: Any, images: Tensor) -> None:
    assert network.backbone.act1.inplace
    with torch.no_grad():
        with feature_taps(network, ["bn1", "act1"]) as taps:
            network(images)
        expected = network.backbone.bn1(network.backbone.conv1(network.normalize(images)))
    torch.testing.assert_close(taps["bn1"], expected, atol=0, rtol=0)
    torch.testing.assert_close(taps["act1"], expected.relu(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "name", "width"),
    [
        ("resnet18", "fc", 512),
        ("convnext_atto", "head.fc", 320),
        ("mobilenetv3_small_050", "classifier", 1024),
        ("torchvision/mobilenet_v2", "classifier.1", 1280),
        ("torchvision/densenet121", "classifier", 1024),
        ("resnetv2_18", "head.fc", 512),  # a 1×1 convolution
        ("convformer_s18", "head.fc.fc2", 2048),  # a head with a hidden layer
        ("squeezenet1_1", "classifier.1", 512),  # a convolution over a map
    ],
)
def test_features_are_the_input_of_the_classifier(architecture: str, name: str, width: int, images: Tensor) -> None:
    network: Any = create_network(architecture, num_classes=3).eval()
    assert classifier_name(network) == classifier_name(network.backbone) == name
    with feature_taps(network, ["features"]) as taps:
        logits = network(images)
    features, classifier = taps["features"], network.backbone.get_submodule(name)
    assert features.shape == (2, width)
    if architecture != "squeezenet1_1":
        torch.testing.assert_close(features @ classifier.weight.flatten(1).T + classifier.bias, logits)
        assert torch.autograd.grad(logits.sum(), features)[0].abs().sum() > 0


def test_gradients_flow_through_taps(network: Any, images: Tensor) -> None:
    with feature_taps(network, ["features", "layer3"]) as taps:
        logits = network(images)
    (gradient,) = torch.autograd.grad(logits.sum(), taps["layer3"], retain_graph=True)
    maps = up_to_layer3(network, images).detach().requires_grad_()
    (expected,) = torch.autograd.grad(from_layer3(network, maps).sum(), maps)
    torch.testing.assert_close(gradient, expected)
    (gradient,) = torch.autograd.grad(taps["features"].sum(), network.backbone.conv1.weight)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("layer", ["layer3", "bn1"])  # what follows bn1 works in place
def test_a_graph_starts_at_the_tap_in_any_mode(
    network: Any, images: Tensor, mode: Any, layer: str, frozen: bool
) -> None:
    with feature_taps(network, [layer]) as taps:
        logits = network(images)
    (expected,) = torch.autograd.grad(logits[:, 1].sum(), taps[layer])

    network.requires_grad_(not frozen)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with feature_taps(network, [layer], start_graph=True) as taps:
            logits = network(images.clone())
            assert taps[layer].is_leaf
            (gradient,) = torch.autograd.grad(logits[:, 1].sum(), taps[layer])
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    torch.testing.assert_close(gradient, expected)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert hooks(network) == 0
    network.requires_grad_(True)


def test_a_started_graph_reaches_every_later_tap_and_every_forward(network: Any, images: Tensor) -> None:
    with torch.no_grad(), feature_taps(network, ["layer3", "layer4", "features"], start_graph=True) as taps:
        for _ in range(2):
            logits = network(images)
            gradients = torch.autograd.grad(logits.sum(), [taps["layer3"], taps["layer4"], taps["features"]])
            assert all(gradient.abs().sum() > 0 for gradient in gradients)
            assert taps["layer3"].is_leaf


def test_a_graph_can_start_at_an_inference_tensor() -> None:
    network: Any = nn.Sequential(nn.Identity(), nn.Linear(4, 2))
    with torch.inference_mode(), feature_taps(network, ["0"], start_graph=True) as taps:
        with torch.inference_mode():
            x = torch.rand(3, 4)
        (gradient,) = torch.autograd.grad(network(x)[:, 0].sum(), taps["0"])
    torch.testing.assert_close(gradient, network[1].weight[0].expand(3, -1).detach())


def test_gradients_of_features_alone(network: Any, images: Tensor) -> None:
    with torch.no_grad(), feature_taps(network, ["features"], start_graph=True) as taps:
        (gradient,) = torch.autograd.grad(network(images)[:, 2].sum(), taps["features"])
    torch.testing.assert_close(gradient, network.backbone.fc.weight[2].expand(2, -1).detach())


def test_taps_inside_taps(network: Any, images: Tensor) -> None:
    with feature_taps(network, ["layer3"]) as outer:
        with torch.no_grad(), feature_taps(network, ["layer3", "layer4"], start_graph=True) as inner:
            logits = network(images)
            gradient = torch.autograd.grad(logits.sum(), inner["layer3"])[0]
        assert hooks(network) == 1
        torch.testing.assert_close(outer["layer3"], inner["layer3"].detach())
        assert gradient.abs().sum() > 0
        network(images + 0.1)
    assert not torch.equal(outer["layer3"], inner["layer3"])
    assert outer.keys() == {"layer3"}
    assert hooks(network) == 0


@pytest.mark.parametrize("start_graph", [False, True])
def test_nothing_is_left_after_exceptions(network: Any, images: Tensor, start_graph: bool) -> None:
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError),
        feature_taps(network, ["layer3", "features"], start_graph=start_graph),
    ):
        network(images[:, :2])
    with pytest.raises(UserError), feature_taps(network, ["layer3", "layer9"], start_graph=start_graph):
        pass
    assert hooks(network) == 0
    assert torch.is_grad_enabled()


def test_an_unknown_layer_gives_the_nearest(network: Any) -> None:
    with pytest.raises(UserError, match=r"no layer 'layer5' in resnet18\. Nearest: layer\d, layer\d, layer\d"):
        find_layer(network, "layer5")


def test_a_layer_that_returns_no_tensor_is_refused() -> None:
    network = nn.Sequential(nn.LSTM(4, 4), nn.Identity())
    with pytest.raises(UserError, match="layer '0' returns a tuple"), feature_taps(network, ["0"]):
        network(torch.rand(2, 4))


def test_a_layer_that_runs_twice_keeps_its_last_output() -> None:
    layer = nn.Linear(4, 4)
    network = nn.Sequential(layer, nn.ReLU(inplace=True), layer)
    x = torch.rand(2, 4)
    for start_graph in (False, True):
        with feature_taps(network, ["0", "2"], start_graph=start_graph) as taps:
            y = network(x)
        torch.testing.assert_close(taps["0"], y)
        torch.testing.assert_close(taps["2"], y)


@pytest.mark.parametrize("inside", [False, True])
def test_compiled_modules_are_looked_through(network: Any, images: Tensor, inside: bool) -> None:
    compiled: Any
    if inside:
        backbone: Any = torch.compile(network.backbone, backend="eager")
        compiled = PixelNetwork(backbone, (0.0,) * 3, (1.0,) * 3, "resnet18", 3, 32).eval()
    else:
        compiled = torch.compile(network, backend="eager")
    with torch.no_grad():
        expected = compiled(images)  # compiled code is cached without hooks
        assert classifier_name(compiled) == "fc"
        with feature_taps(compiled, ["features", "layer3"], start_graph=True) as taps:
            logits = compiled(images)
            (gradient,) = torch.autograd.grad(logits.sum(), taps["layer3"])
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(compiled(images), expected)
    assert taps["features"].shape == (2, 512)
    assert gradient.abs().sum() > 0


def test_only_the_caller_keeps_tensors_alive(network: Any, images: Tensor) -> None:
    with torch.no_grad(), feature_taps(network, ["layer3"]) as taps:
        network(images)
    assert taps["layer3"].shape[0] == 2
    reference = weakref.ref(taps["layer3"])
    del taps
    gc.collect()
    assert reference() is None


def test_replacing_the_classifier(images: Tensor) -> None:
    for architecture in ("resnet18", "torchvision/mobilenet_v2", "squeezenet1_1", "resnetv2_18"):
        network = create_network(architecture, num_classes=3).eval()
        replace_classifier(network, 6)
        assert network.num_classes == 6
        assert network(images).shape == (2, 6)


def test_a_network_without_classifier_is_refused() -> None:
    with pytest.raises(UserError, match="no single linear or convolutional layer"):
        classifier_name(nn.Sequential(nn.Flatten()))
