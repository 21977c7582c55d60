"""Features are what the classifier gets, in whatever network, and reading them leaves nothing behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresslens.embeddings.features import FEATURES, LOGITS, tapped_features
from compresslens.errors import UserError
from compresslens.networks import create_network
from compresslens.quantization import calibrate, convert, fake_quantize, learn_steps
from tests.quantization.networks import images, residual


def features_of(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), tapped_features(network) as taps:
        logits = network(x)
    assert set(taps) == {FEATURES, LOGITS}
    assert torch.equal(taps[LOGITS], logits)
    return taps[FEATURES], logits


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def by_hand(network: Any, x: Tensor) -> Tensor:
    """The features of `residual()`, layer by layer."""
    b = network.backbone
    first = b.relu(b.bn1(b.stem(network.normalize(x))))
    return b.relu(first + b.bn2(b.conv(first))).mean((2, 3))


def quantized(seed: int = 0) -> Any:
    network: Any = residual(seed)
    fake_quantize(network)
    calibrate(network, [images(32)])
    return network.eval()


def with_learned_steps() -> Any:
    network: Any = residual()
    learn_steps(network, [images(32)], 8, 8)
    return network.eval()


@pytest.fixture(scope="module")
def twin() -> Any:
    return quantized()


# Values ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "torchvision/mobilenet_v2"])
def test_the_classifier_makes_the_logits_of_them(architecture: str) -> None:
    network: Any = create_network(architecture, num_classes=5, image_size=32).eval()
    x = torch.rand(3, 3, 32, 32)
    features, logits = features_of(network, x)
    classifier = network.backbone.classifier if hasattr(network.backbone, "classifier") else network.backbone.fc
    classifier = classifier[-1] if isinstance(classifier, nn.Sequential) else classifier
    assert features.shape == (3, classifier.in_features)
    torch.testing.assert_close(classifier(features), logits)
    torch.testing.assert_close(logits, network(x), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["squeezenet1_1", "torchvision/squeezenet1_1"])
def test_of_a_classifier_that_is_a_convolution_they_are_the_mean_of_its_map(architecture: str) -> None:
    network: Any = create_network(architecture, num_classes=5, image_size=48).eval()
    x = torch.rand(2, 3, 48, 48)
    features, _ = features_of(network, x)
    maps = network.backbone.features(network.normalize(x))
    assert maps.shape[2:].numel() > 1
    torch.testing.assert_close(features, maps.mean((2, 3)))


@torch.no_grad()
def test_features_of_a_plain_network_are_those_of_a_pass_by_hand() -> None:
    network = residual()
    features, _ = features_of(network, images())
    torch.testing.assert_close(features, by_hand(network, images()))


@torch.no_grad()
def test_fake_quantizers_round_them(twin: Any) -> None:
    features, logits = features_of(twin, images())
    torch.testing.assert_close(logits, twin(images()), rtol=0, atol=0)
    unrounded = by_hand(residual(), images())
    assert features.shape == unrounded.shape
    assert float((features - unrounded).abs().max()) < 0.02 * float(unrounded.abs().max())
    assert 1 < len(features.unique()) <= 256, "codes of eight bits"


@pytest.mark.slow
@torch.no_grad()
def test_int8_has_the_features_of_its_twin(twin: Any) -> None:
    int8 = convert(twin)
    features, logits = features_of(int8, images())
    theirs, _ = features_of(twin, images())
    torch.testing.assert_close(logits, int8(images()))
    assert float((features - theirs).abs().max()) < 0.02 * float(theirs.abs().max())


@torch.no_grad()
def test_learned_steps() -> None:
    network = with_learned_steps()
    features, logits = features_of(network, images())
    classifier = network.backbone.fc
    torch.testing.assert_close(classifier(features), logits)
    unrounded = by_hand(residual(), images())
    assert float((features - unrounded).abs().max()) < 0.03 * float(unrounded.abs().max())


@torch.no_grad()
@pytest.mark.parametrize(
    "build", [residual, pytest.param(quantized, marks=pytest.mark.slow)], ids=["plain", "fake quantizers"]
)
@pytest.mark.parametrize("inside", [False, True])
def test_compiled_networks(build: Any, inside: bool) -> None:
    """Compiled code is cached without hooks before the features are asked for, and is in use again after that."""
    plain = build()
    runs = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*values: Any) -> Any:
            runs.append(len(values))
            return graph.forward(*values)

        return run

    compiled: Any = copy.copy(plain)
    compiled._modules = dict(plain._modules)
    if inside:
        compiled.backbone = torch.compile(plain.backbone, backend=backend)
    else:
        compiled = torch.compile(compiled, backend=backend)
    compiled(images())
    before = len(runs)  # a graph may be compiled in several parts
    assert before > 0
    features, logits = features_of(compiled, images(5, 3))
    expected, of_plain = features_of(plain, images(5, 3))
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(logits, of_plain)
    assert len(runs) == before
    compiled(images())
    assert len(runs) > before


@torch.no_grad()
def test_several_passes_leave_the_last_ones(twin: Any) -> None:
    for network in (residual(), twin):
        with tapped_features(network) as taps:
            network(images())
            network(images(5, 3))
        expected, logits = features_of(network, images(5, 3))
        assert torch.equal(taps[FEATURES], expected)
        assert torch.equal(taps[LOGITS], logits)


@torch.no_grad()
def test_in_low_precision_they_are_what_the_classifier_got() -> None:
    network = residual()
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = features_of(network, images())
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), by_hand(network, images()), rtol=0.05, atol=0.05)


# What is left behind --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(twin: Any, fail: bool) -> None:
    for network in (residual(), twin, with_learned_steps()):
        before = {id(m): set(vars(m)) for m in network.modules()}
        flags = [m.training for m in network.modules()]
        try:
            with tapped_features(network):
                assert hooks(network) > 0
                network(images())
                if fail:
                    raise RuntimeError("in the middle of it")
        except RuntimeError:
            assert fail
        assert hooks(network) == 0
        assert {id(m): set(vars(m)) for m in network.modules()} == before
        assert [m.training for m in network.modules()] == flags


def test_gradients_flow_as_without(twin: Any) -> None:
    for network in (residual(), copy.deepcopy(twin)):
        gradients = []
        for tapped in (False, True):
            network.zero_grad()
            if tapped:
                with tapped_features(network):
                    network(images()).square().sum().backward()
            else:
                network(images()).square().sum().backward()
            gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        assert len(gradients[0]) > 3
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)


# What is refused ------------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Two layers of which each could be the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 4
        self.head = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head[0](x.mean((2, 3))) + self.head[1](x.amax((2, 3)))


@pytest.mark.parametrize("network", [nn.Flatten(), Heads()])
def test_networks_without_a_single_classifier(network: nn.Module) -> None:
    with (
        pytest.raises(UserError, match="has no single linear or convolutional layer as its classifier"),
        tapped_features(network),
    ):
        pass
    assert hooks(network) == 0
