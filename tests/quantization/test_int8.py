"""Conversion to INT8: the same predictions as the fake-quantized network, in a quarter of the bytes."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from compresslens.errors import UserError
from compresslens.networks import create_network
from compresslens.quantization import calibrate, convert, deployable, fake_quantize
from compresslens.quantization.autotune import autotune, choose_float_layers, quantizers_by_layer, sensitivity
from compresslens.quantization.fold import fold_batchnorm, fused_nodes
from tests.quantization.networks import images, residual


@pytest.fixture(scope="module")
def twin() -> Any:
    network = residual()
    fake_quantize(network)
    calibrate(network, [images(32)])
    return network


@pytest.fixture(scope="module")
def int8(twin: Any) -> nn.Module:
    return convert(twin)


def test_it_computes_what_its_twin_does(twin: Any, int8: nn.Module) -> None:
    x = images(64, 1)
    own, converted = twin(x), int8(x)
    step = float(own.abs().max()) / 127
    assert float((own - converted).abs().max()) <= 2 * step
    assert (own.argmax(1) == converted.argmax(1)).float().mean() >= 0.95  # of random logits that lie close together


def test_it_stores_integers(int8: Any) -> None:
    tensors = int8.state_dict()
    integers = [value for value in tensors.values() if value.dtype == torch.int8]
    network = residual()
    weights = [network.backbone.stem.weight, network.backbone.conv.weight, network.backbone.fc.weight]  # type: ignore[union-attr]
    assert sorted(value.numel() for value in integers) == sorted(weight.numel() for weight in weights)
    assert not any(value.ndim > 1 for value in tensors.values() if value.is_floating_point())


def test_the_twin_is_left_as_it_was(twin: Any) -> None:
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    twin.train()
    convert(twin)
    assert twin.training
    assert twin.backbone.training
    assert all(torch.equal(before[name], value) for name, value in twin.state_dict().items())
    twin.eval()


def test_it_has_no_training_mode(int8: nn.Module) -> None:
    expected = int8(images())
    int8.train()
    assert torch.equal(int8(images()), expected)
    int8.eval()
    assert int8(images(1)).shape == (1, 7), "any batch size"


def test_folding_equals_the_pair_it_replaces(twin: Any) -> None:
    folded = copy.deepcopy(twin).eval()
    expected = folded(images())
    folded.backbone._switch(False, False, False)
    assert len(list(fused_nodes(folded.backbone.graph))) == 2
    fold_batchnorm(folded.backbone.graph)
    assert not any("batch_norm" in str(node.target) for node in folded.backbone.graph.graph.nodes)
    torch.testing.assert_close(folded.backbone.graph(folded.normalize(images())), expected, rtol=1e-4, atol=1e-5)


def test_a_float_network_is_deployed_as_it_is(twin: Any) -> None:
    network = residual()
    assert deployable(network) is network
    assert deployable(twin) is not twin


def test_what_cannot_be_converted() -> None:
    network = residual()
    with pytest.raises(UserError, match="no fake quantizers"):
        convert(network)
    fake_quantize(network)
    with pytest.raises(UserError, match="calibrate or train the network first"):
        convert(network)


def test_a_network_of_timm() -> None:
    network = create_network("test_efficientnet", 5, image_size=32).eval()
    fake_quantize(network)
    x = torch.rand(8, 3, 32, 32)
    calibrate(network, [x])
    own, converted = network(x), convert(network)(x)
    assert float((own - converted).abs().max()) <= 0.05 * float(own.abs().max())


# Which layers stay in float -------------------------------------------------------------------------------------------


def test_every_layer_has_its_quantizers(twin: Any) -> None:
    assert {name: len(quantizers) for name, quantizers in quantizers_by_layer(twin.backbone).items()} == {
        "stem": 2,
        "conv": 2,
        "fc": 2,
    }


def test_sensitivity_is_the_error_of_a_layer_alone() -> None:
    """Against the same network with all other layers in float."""
    network, x = residual(), [images(32)]
    exact = network(x[0])
    errors = sensitivity(network, x)
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    alone = copy.deepcopy(network)
    fake_quantize(alone, ["stem", "conv"])
    calibrate(alone, x)
    for quantizer in alone.backbone.activation_quantizers():
        if quantizer is not alone.backbone.graph.get_submodule(quantizers_by_layer(alone.backbone)["fc"][0]):
            quantizer.disable_fake_quant()
    expected = float((alone(x[0]) - exact).double().square().mean())
    assert errors["fc"] == pytest.approx(expected, rel=0.02)


def accuracies(*values: float) -> Any:
    """Stands for a measurement: gives one value after the other."""
    left = list(values)
    return lambda network: left.pop(0)


def test_the_first_list_that_is_good_enough_is_chosen() -> None:
    network, x = residual(), [images(8)]
    candidates = [[], ["fc"], ["fc", "stem"], ["fc", "stem", "conv"]]
    assert autotune(network, x, accuracies(0.9, 0.5, 0.895), 0.01, candidates) == ["fc"]
    assert autotune(network, x, accuracies(0.9, 0.5, 0.6, 0.4, 0.3, 0.6), 0.01, candidates) == ["fc"]


def test_a_tolerance_that_is_not_met_is_an_error() -> None:
    network = residual()
    with pytest.raises(UserError, match="never right"):
        choose_float_layers(network, [images(8)], accuracies(0.0), 0.01)
    with pytest.raises(UserError, match=r"accuracy 0\.9000 in float, 0\.5000 with 0 layers in float; raise tolerance"):
        choose_float_layers(network, [images(8)], accuracies(0.9, 0.9, 0.5, 0.5), 0.01, trials=1)
    assert choose_float_layers(network, [images(8)], accuracies(0.9, 0.9, 0.9, 0.9), 0.01, trials=1) == []
