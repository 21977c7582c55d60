"""Maps of compressed networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresslens.cams import class_activation_maps, maps_and_logits
from compresslens.errors import UserError
from compresslens.footprint import count_macs
from compresslens.low_rank import factorize
from compresslens.networks import create_network
from compresslens.pruning.channels import remove_channels, select_channels
from compresslens.quantization import calibrate, convert, fake_quantize, learn_steps
from compresslens.quantization.graphs import flat_graph, graph_layers, is_converted
from tests.pruning.networks import Depthwise, trained
from tests.quantization.networks import images as noise
from tests.quantization.networks import residual

GRADIENT = ("grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam")
GRADIENT_FREE = ("cam", "eigen_cam", "score_cam")


def blobs(count: int = 8, size: int = 12) -> Tensor:
    """A bright square on a dark, noisy ground, at another place in each image."""
    x = noise(count)[:, :, :size, :size] * 0.3
    for row in range(count):
        top, left = row % 4 * 2, row // 4 * 4
        x[row, :, top : top + 5, left : left + 5] += 0.6
    return x


def correlations(maps: Tensor, others: Tensor) -> Tensor:
    pairs = (torch.stack([one.flatten(), other.flatten()]) for one, other in zip(maps, others, strict=True))
    return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])


@pytest.fixture(scope="module")
def network() -> Any:
    return residual()


@pytest.fixture(scope="module")
def twin() -> Any:
    quantized = residual()
    fake_quantize(quantized)
    # masked images are darker than any other
    calibrate(quantized, [torch.cat([blobs(), torch.zeros(1, 3, 12, 12), torch.ones(1, 3, 12, 12)])])
    return quantized.eval()


@pytest.fixture(scope="module")
def int8(twin: Any) -> nn.Module:
    return convert(twin)


@pytest.mark.parametrize("layer", [None, "relu", "backbone.relu"])
@pytest.mark.parametrize("method", [*GRADIENT, *GRADIENT_FREE])
def test_fake_quantizers_change_little(network: Any, twin: Any, method: Any, layer: str | None) -> None:
    classes = network(blobs()).argmax(1)
    maps = class_activation_maps(network, blobs(), classes, method=method)
    quantized, logits = maps_and_logits(twin, blobs(), classes, method=method, layer=layer)
    assert correlations(maps, quantized).min() > 0.98
    torch.testing.assert_close(logits, twin(blobs()).detach())


@pytest.mark.parametrize("layer", [None, "relu"])
@pytest.mark.parametrize("method", GRADIENT_FREE)
def test_int8_has_the_maps_of_its_twin(twin: Any, int8: nn.Module, method: Any, layer: str | None) -> None:
    classes = twin(blobs()).argmax(1)
    maps, logits = maps_and_logits(int8, blobs(), classes, method=method, layer=layer)
    torch.testing.assert_close(maps, class_activation_maps(twin, blobs(), classes, method=method), rtol=0, atol=0.02)
    torch.testing.assert_close(logits, int8(blobs()))
    assert (maps.amax((1, 2)) > 0.99).all()


@pytest.mark.parametrize("method", GRADIENT)
def test_int8_has_no_gradient(int8: nn.Module, method: Any) -> None:
    for layer in (None, "relu"):
        with pytest.raises(
            UserError, match=rf"'{method}' needs a gradient, .* one of cam, eigen_cam, score_cam, or the"
        ):
            class_activation_maps(int8, blobs(), method=method, layer=layer)


def test_a_gradient_is_straight_through(twin: Any) -> None:
    """Behind the pooling: rounded mean → rounded again → linear, with rounded weights."""
    maps = class_activation_maps(twin, blobs(), torch.full((8,), 2), method="hires_cam")
    torch.testing.assert_close(
        maps, class_activation_maps(twin, blobs(), torch.full((8,), 2), method="cam"), rtol=0, atol=1e-4
    )


def test_layers_of_a_graph_have_the_names_of_the_network(network: Any, twin: Any, int8: nn.Module) -> None:
    graph = flat_graph(twin)
    assert graph is not None
    layers = {name: str(node) for name, node in graph_layers(graph).items()}
    assert set(layers) == {name for name, _ in network.backbone.named_modules() if name}
    assert layers["stem"] == layers["bn1"], "normalized within the convolution"
    assert layers["relu"].startswith("activation_post_process"), "rounded, as what follows takes it"
    assert not is_converted(twin)
    assert is_converted(int8)
    assert flat_graph(network) is None
    with torch.no_grad():
        first = network.backbone.bn1(network.backbone.stem(network.normalize(blobs())))
    from compresslens.cams.layers import tapped_pass
    from compresslens.networks.modes import input_gradients

    for quantized in (twin, int8):
        with input_gradients(quantized):
            found = tapped_pass(quantized, blobs(), "stem").activations.detach()
        assert (found - first).abs().mean() < 0.02 * first.abs().mean()


@pytest.mark.parametrize("name", ["layer4", "bn3"])
def test_unknown_layers_of_a_graph(int8: nn.Module, name: str) -> None:
    with pytest.raises(UserError, match=f"there is no layer '{name}'"):
        class_activation_maps(int8, blobs(), method="eigen_cam", layer=name)


def test_a_graph_is_left_as_found(twin: Any) -> None:
    graph: Any = flat_graph(twin)
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    code = graph.code
    twin.train()
    for layer in (None, "relu", "fc"):
        try:
            class_activation_maps(twin, blobs(), layer=layer)
        except UserError:
            assert layer == "fc", "no map"
        assert "forward" not in graph.__dict__
        assert all(module.training for module in twin.modules())
    twin.eval()
    twin(blobs())
    assert graph.code == code
    assert all(torch.equal(before[name], value) for name, value in twin.state_dict().items())


@pytest.mark.parametrize("bits", [8, 4])
def test_learned_steps(network: Any, bits: int) -> None:
    stepped = copy.deepcopy(network)
    learn_steps(stepped, [blobs(), torch.zeros(1, 3, 12, 12)], bits, bits)
    classes = network(blobs()).argmax(1)
    for method in (*GRADIENT, *GRADIENT_FREE):
        found, logits = maps_and_logits(stepped, blobs(), classes, method=method)  # type: ignore[arg-type]
        maps = class_activation_maps(network, blobs(), classes, method=method)  # type: ignore[arg-type]
        assert correlations(maps, found).median() > (0.98 if bits == 8 else 0.7), method
        torch.testing.assert_close(logits, stepped(blobs()).detach())
    torch.testing.assert_close(
        class_activation_maps(stepped, blobs(), method="cam"),
        class_activation_maps(stepped, blobs(), method="cam", layer="relu"),
    )


def test_a_classifier_of_two_factors(network: Any) -> None:
    factors = copy.deepcopy(network)
    with torch.no_grad():
        left, values, right = torch.linalg.svd(network.backbone.fc.weight, full_matrices=False)
        reduce, expand = nn.Linear(8, 7, bias=False), nn.Linear(7, 7)
        reduce.weight.copy_(values[:, None] * right)
        expand.weight.copy_(left)
        expand.bias.copy_(network.backbone.fc.bias)
    factors.backbone.fc = nn.Sequential(reduce, expand)
    for method in ("cam", "grad_cam"):
        maps = class_activation_maps(network, blobs(), method=method)  # type: ignore[arg-type]
        torch.testing.assert_close(class_activation_maps(factors, blobs(), method=method), maps, rtol=0, atol=1e-4)  # type: ignore[arg-type]


def test_low_rank_pruned_and_narrow_networks() -> None:
    """Rank and width that are no longer there change nothing if they were not used."""
    torch.manual_seed(0)
    network: Any = create_network("test_resnet", 5, image_size=32).eval()
    x = torch.rand(3, 3, 32, 32)
    maps = class_activation_maps(network, x)
    low_rank = copy.deepcopy(network)
    factorize(low_rank, energy=0.9999, image_size=32, layers=["layer4"])
    masked = copy.deepcopy(network)
    for parameter in masked.parameters():
        parameter.data[parameter.abs() < 1e-4] = 0
    for changed in (low_rank, masked):
        assert correlations(maps, class_activation_maps(changed, x)).min() > 0.95
        torch.testing.assert_close(
            class_activation_maps(changed, x, method="cam"), class_activation_maps(changed, x), rtol=0, atol=1e-4
        )


def test_channels_that_are_gone() -> None:
    network = trained(Depthwise()).eval()
    removals, _ = select_channels(network, 16, "macs", 0.6 * count_macs(network, 16))
    remove_channels(network, 16, removals)
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = class_activation_maps(network, x)
    assert network.head.out_channels < 40  # type: ignore[union-attr]
    torch.testing.assert_close(maps, class_activation_maps(network, x, method="cam"), rtol=0, atol=1e-5)
    assert (maps.amax((1, 2)) > 0.99).any()


@pytest.mark.parametrize(
    ("name", "inside", "layer"),
    [
        ("network", False, None),
        ("network", True, "relu"),
        pytest.param("twin", True, None, marks=pytest.mark.slow),
        pytest.param("twin", False, "relu", marks=pytest.mark.slow),
    ],
)
def test_compiled_networks(name: str, inside: bool, layer: str | None, request: pytest.FixtureRequest) -> None:
    plain: Any = request.getfixturevalue(name)
    compiled: Any = copy.copy(plain)
    compiled._modules = dict(plain._modules)
    if inside:
        compiled.backbone = torch.compile(plain.backbone, backend="eager")
    else:
        compiled = torch.compile(compiled, backend="eager")
    with torch.no_grad():
        compiled(blobs())  # compiled code is cached without hooks
    for method in ("grad_cam", "cam"):
        maps = class_activation_maps(compiled, blobs(), method=method, layer=layer)  # type: ignore[arg-type]
        expected = class_activation_maps(plain, blobs(), method=method, layer=layer)  # type: ignore[arg-type]
        torch.testing.assert_close(maps, expected)
