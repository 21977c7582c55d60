"""Learned steps: rounding, gradients, calibration, structure, and what is written to disk."""

import copy
import io
import json
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from compresslens.errors import UserError
from compresslens.footprint import count_macs
from compresslens.networks import apply_changes, changes_of, classifier_name, create_network, feature_taps
from compresslens.networks.taps import find_layer
from compresslens.quantization import learn_steps, packed_state, quantized_layers, unpack_state
from compresslens.quantization.lsq_calibration import input_step, observe_inputs, weight_steps
from compresslens.quantization.lsq_layers import QuantizedConv2d, QuantizedConv2dSame, QuantizedLinear, quantize_layer
from compresslens.quantization.lsq_packing import pack, unpack
from compresslens.quantization.lsq_quantizer import (
    SMALLEST_STEP,
    InputQuantizer,
    StepQuantizer,
    WeightQuantizer,
    code_range,
    step_sizes,
)
from tests.lightning_modules.tiny import SIZE, Noise, TinyNetwork
from tests.references.quantization import learned_step, least_squares_step, packed_bits

bits_ = st.integers(2, 8)
numbers = st.floats(-1e3, 1e3, allow_nan=False, width=32)


def images(count: int = 8, seed: int = 0, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tiny(weight_bits: int = 4, activation_bits: int = 4, **options: Any) -> Any:
    network = TinyNetwork(width=5).eval()
    learn_steps(network, [images(), images(5, 1)], weight_bits, activation_bits, **options)
    return network


def quantizer(bits: int, signed: bool, step: float) -> InputQuantizer:
    made = InputQuantizer(bits, signed).double()
    nn.init.constant_(made.step, step)
    return made


# Rounding and gradients -----------------------------------------------------------------------------------------------


@given(st.lists(numbers, min_size=1, max_size=20), bits_, st.booleans(), st.floats(1e-3, 10))
def test_values_within_the_range_are_off_by_half_a_step_at_most(
    values: list[float], bits: int, signed: bool, step: float
) -> None:
    low, high = code_range(bits, signed)
    given_ = torch.tensor([values], dtype=torch.float64)
    rounded = quantizer(bits, signed, step)(given_).detach()
    nearest = given_.clamp(low * step, high * step)
    assert ((rounded - nearest).abs() <= step / 2 * (1 + 1e-12)).all()
    codes = rounded / step
    torch.testing.assert_close(codes, codes.round(), atol=1e-9, rtol=0)
    assert codes.round().min() >= low
    assert codes.round().max() <= high
    assert high - low + 1 == 2**bits


@given(st.lists(numbers, min_size=1, max_size=20), bits_, st.booleans(), st.floats(1e-3, 10), st.sampled_from([1, -1]))
def test_gradients_are_those_of_the_paper(values: list[float], bits: int, signed: bool, step: float, sign: int) -> None:
    module = quantizer(bits, signed, sign * step)
    low, high = code_range(bits, signed)
    # the bounds themselves too, and a batch of two images: N is the size of one
    given_ = torch.tensor([[*values, low * step], [*values, high * step]], dtype=torch.float64, requires_grad=True)
    weights = torch.linspace(-1, 1, given_.numel(), dtype=torch.float64).view_as(given_)
    (module(given_) * weights).sum().backward()
    expected = [learned_step(value, step, low, high) for value in given_.flatten().tolist()]
    assert given_.grad is not None
    assert module.step.grad is not None
    assert module(given_).flatten().tolist() == [quantized for quantized, _, _ in expected]
    assert given_.grad.flatten().tolist() == [
        slope * weight for (_, slope, _), weight in zip(expected, weights.flatten().tolist(), strict=True)
    ]
    slope = math.fsum(w * slope for (_, _, slope), w in zip(expected, weights.flatten().tolist(), strict=True))
    scale = 1 / math.sqrt((len(values) + 1) * high)
    assert float(module.step.grad) == pytest.approx(sign * slope * scale, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("channels", [1, 6])
def test_weights_that_share_a_step_share_its_gradient(channels: int) -> None:
    module = WeightQuantizer(3, channels).double()
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    module.step.data = torch.linspace(0.1, 0.9, channels, dtype=torch.float64)
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    module(weight).sum().backward()
    count = weight.numel() // channels
    assert module.step.grad is not None
    rows = weight.detach().flatten(1).tolist() if channels > 1 else [weight.detach().flatten().tolist()]
    for row, values in enumerate(rows):
        parts = [learned_step(value, float(module.step.detach()[row]), -4, 3) for value in values]
        assert float(module.step.grad[row]) == pytest.approx(sum(p[2] for p in parts) / math.sqrt(count * 3))
    assert module(weight).is_contiguous(memory_format=torch.channels_last)


def test_gradient_of_the_step_does_not_depend_on_the_batch_size() -> None:
    value = torch.rand(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 3
    slopes = []
    for batch in (value, value.repeat(4, 1, 1, 1)):
        module = InputQuantizer(3, False)
        module(batch).square().mean(0).sum().backward()
        slopes.append(module.step.grad)
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("start", [0.0, -0.3, 1e-12, -1e-12])
def test_steps_are_positive_whatever_the_parameter_is(start: float) -> None:
    module = InputQuantizer(4, True)
    nn.init.constant_(module.step, start)
    assert step_sizes(module.step).item() == pytest.approx(max(abs(start), SMALLEST_STEP))
    value = torch.tensor([[0.5, -0.2, 0.0]])
    assert module(value).isfinite().all()
    # all but zero are clipped: pulling the outputs towards the values must widen the range
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    before = step_sizes(module.step).item()
    for _ in range(3):
        optimizer.zero_grad()
        (module(value) - 10 * value).square().sum().backward()
        optimizer.step()
    assert step_sizes(module.step).item() > before + 0.01


def test_a_step_that_an_optimizer_carried_past_zero_comes_back() -> None:
    module = WeightQuantizer(4, 1)
    weight = torch.linspace(-1, 1, 21).view(1, -1)
    nn.init.constant_(module.step, 0.02)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for step in range(300):
        optimizer.zero_grad()
        target = weight if step else torch.zeros_like(weight)  # the first update shrinks the step to below zero
        (module(weight) - target).square().sum().backward()
        optimizer.step()
        assert step or module.step.item() < 0
    assert (module(weight) - weight).abs().max() < 0.1


def test_not_a_number_is_not_hidden() -> None:
    assert InputQuantizer(4, True)(torch.tensor([[math.nan]])).isnan().all()
    assert InputQuantizer(4, True)(torch.tensor([[math.inf, -math.inf]])).tolist() == [[7.0, -8.0]]


@given(bits_, st.integers(0, 10))
def test_zeros_stay_zeros(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 5, generator=generator) * (torch.rand(7, 5, generator=generator) < 0.5)
    module = WeightQuantizer(bits, 7)
    module.step.data = weight_steps(weight, bits, True)
    assert (module(weight)[weight == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_and_autocast(dtype: torch.dtype) -> None:
    module = InputQuantizer(8, True)
    nn.init.constant_(module.step, 0.013)
    value = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = (value.double() / module.step.detach().double()).clamp(-128, 127).round() * 0.013
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module(value)
    assert rounded.dtype == dtype
    torch.testing.assert_close(rounded, module(value), atol=0, rtol=0)
    # float32 at least: no code is another because of a coarse type
    torch.testing.assert_close(rounded.double(), expected, atol=1e-7, rtol=torch.finfo(dtype).eps)


def test_nothing_works_in_place() -> None:
    value, module = torch.randn(4, 5), InputQuantizer(2, True)
    before = value.clone()
    with torch.no_grad():
        module(value)
    module(value.requires_grad_()).sum().backward()
    assert torch.equal(value, before)


# Where steps start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_steps_start_at_the_papers(bits: int) -> None:
    weight = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    root = math.sqrt(2 ** (bits - 1) - 1)
    whole = 2 * float(weight.abs().mean()) / root
    expected = [2 * float(row.abs().mean()) / root for row in weight]
    expected[1] = whole  # nothing to go by
    assert weight_steps(weight, bits, True).tolist() == pytest.approx(expected)
    assert weight_steps(weight, bits, False).tolist() == pytest.approx([whole])
    assert weight_steps(torch.zeros(2, 3), bits, True).tolist() == [1, 1]


@given(st.lists(numbers, min_size=3, max_size=12), bits_)
@settings(max_examples=40, deadline=None)
def test_inputs_steps_start_at_the_least_error(values: list[float], bits: int) -> None:
    samples = torch.tensor(values)
    signed = bool((samples < 0).any())
    low, high = code_range(bits, signed)
    step = input_step(samples, bits, signed)
    widest = max(max(value / high for value in values), max(value / low for value in values) if signed else 0)
    if widest <= SMALLEST_STEP:
        assert step == 1
        return
    candidates = [widest * 64 ** (-number / 63) for number in range(64)]
    best = least_squares_step(values, candidates, low, high)

    def error(step: float) -> float:
        return sum((learned_step(value, step, low, high)[0] - value) ** 2 for value in values)

    assert error(step) <= error(best) * (1 + 1e-3) + 1e-6 * widest**2


def test_calibration_sees_every_batch_and_the_order_of_the_layers() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1)
            self.idle = nn.Linear(2, 2)

        def forward(self, value: Tensor) -> Tensor:
            return self.last(self.first(value).relu()).mean((2, 3))

    network: Any = Swapped()
    batches = [images(2), images(3, 1) - 0.5, images(1, 2)]
    seen = observe_inputs(network, dict(network.named_children()), batches)
    assert list(seen) == ["first", "last"]
    assert seen["first"].signed
    assert seen["first"].minimum == float(batches[1].min())
    assert not seen["last"].signed
    samples = torch.cat(seen["first"].samples)
    assert samples.tolist() == torch.cat([batch.flatten() for batch in batches]).tolist()


def test_calibration_picks_from_large_inputs() -> None:
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.LazyLinear(2))
    batch = images(4, size=64)
    network(batch)
    seen = observe_inputs(network, {"0": network[0]}, [batch, batch])["0"]
    assert [len(part) for part in seen.samples] == [8192, 8192]
    assert not torch.equal(*seen.samples)
    assert torch.isin(seen.samples[0], batch).all()
    assert seen.minimum == float(batch.min())


def snapshot(network: nn.Module) -> dict[str, Any]:
    return {
        "state": {name: value.clone() for name, value in network.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()},
        "training": [module.training for module in network.modules()],
        "kinds": [type(module) for module in network.modules()],
        "hooks": [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules()],
        "changes": changes_of(network),
        "random": torch.get_rng_state(),
    }


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def used_network() -> TinyNetwork:
    network = TinyNetwork()
    network(images()).sum().backward()
    network.layer1.eval()
    return network


def failing() -> Iterator[Tensor]:
    yield images()
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        (failing, {}, OSError, "disk"),
        (lambda: [images(), images() * math.nan], {}, UserError, "layer1.0.*not finite"),
        (lambda: [], {}, UserError, "no images"),
        (lambda: [images()], {"keep": ["layer3"]}, UserError, "no layer 'layer3'.*layer2"),
        (lambda: [images()], {"weight_bits": 1}, UserError, "weight_bits is 1"),
        (lambda: [images()], {"activation_bits": 16}, UserError, "activation_bits is 16"),
        (lambda: [images()], {"edge_bits": 0}, UserError, "edge_bits is 0"),
        (lambda: [images()], {"keep": ["layer1", "layer2", "classifier"]}, UserError, "no convolution"),
    ],
)
def test_errors_leave_the_network_as_it_was(
    batches: Callable[[], Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    network = used_network()
    before = snapshot(network)
    with pytest.raises(error, match=message):
        learn_steps(network, batches(), **{"weight_bits": 4, "activation_bits": 4, **options})
    assert_same(before, snapshot(network))


def test_calibration_leaves_no_other_trace() -> None:
    network = used_network()
    before = snapshot(network)
    loader = torch.utils.data.DataLoader(images(9), batch_size=4, shuffle=True)  # type: ignore[arg-type, var-annotated]
    learn_steps(network, loader, 4, 4)
    after = snapshot(network)
    for name, value in before["state"].items():
        assert torch.equal(value, after["state"].pop(name))
    assert all(name.endswith("_quantizer.step") for name in after["state"])
    assert len(after["state"]) == 6
    assert_same(before["gradients"], {name: after["gradients"][name] for name in before["gradients"]})
    assert_same(before["random"], after["random"])
    assert sum(after["hooks"]) == 0
    assert not any(module.training for module in network.layer1.modules())
    assert all(module.training for module in network.layer2.modules())


def test_calibration_within_inference_mode_gives_trainable_steps() -> None:
    network = TinyNetwork()
    with torch.inference_mode():
        learn_steps(network, [images()], 4, 4)
    network(images()).sum().backward()
    assert all(p.grad is not None and not p.is_inference() for p in network.parameters())


# Networks -------------------------------------------------------------------------------------------------------------


def test_32_bits_are_the_float_network() -> None:
    network = TinyNetwork().eval()
    expected, before = network(images()), snapshot(network)
    learn_steps(network, [images()], 32, 32)
    assert_same(before, snapshot(network))
    assert torch.equal(network(images()), expected)


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(32, 3), (3, 32)])
def test_32_bits_of_one_kind_insert_nothing_of_it(weight_bits: int, activation_bits: int) -> None:
    network = tiny(weight_bits, activation_bits)
    for layer in quantized_layers(network).values():
        assert (layer.weight_quantizer is None) == (weight_bits == 32)
        assert (layer.input_quantizer is None) == (activation_bits == 32)
    layer = network.layer2[0]
    value = torch.randn(2, 5, 6, 6)
    quantized = value if activation_bits == 32 else layer.input_quantizer(value)
    weight = layer.weight if weight_bits == 32 else layer.weight_quantizer(layer.weight)
    assert torch.equal(layer(value), F.conv2d(quantized, weight, layer.bias, 2, 1))


def test_edges_have_more_bits_and_kept_layers_none() -> None:
    network = tiny(3, 2)
    assert {
        name: (m.weight_quantizer.bits, m.input_quantizer.bits) for name, m in quantized_layers(network).items()
    } == {
        "layer1.0": (8, 8),
        "layer2.0": (3, 2),
        "classifier": (8, 8),
    }
    assert [m.input_quantizer.signed for m in quantized_layers(network).values()] == [False] * 3
    assert [len(m.weight_quantizer.step) for m in quantized_layers(network).values()] == [5, 10, 7]
    assert list(quantized_layers(tiny(3, 2, edge_bits=32))) == ["layer2.0"]
    kept = tiny(3, 2, keep=["layer1", "classifier"])  # a block stands for all that is in it
    assert list(quantized_layers(kept)) == ["layer2.0"]
    assert type(kept.classifier) is nn.Linear
    whole = tiny(3, 2, per_channel=False)
    assert [len(m.weight_quantizer.step) for m in quantized_layers(whole).values()] == [1, 1, 1]


def test_eight_bits_are_close_to_float_and_two_are_not() -> None:
    expected = TinyNetwork(width=5).eval()(images(seed=3))
    off = [float((tiny(bits, bits)(images(seed=3)) - expected).norm() / expected.norm()) for bits in (8, 4, 2)]
    assert 0 < off[0] < 0.05
    assert off[0] < off[1] < off[2]


def test_a_second_time_is_refused() -> None:
    network = tiny()
    with pytest.raises(UserError, match="learned steps already"):
        learn_steps(network, [images()], 4, 4)
    assert len(changes_of(network)) == 1


def test_layers_of_other_kinds_are_refused_unless_they_are_kept() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    network = TinyNetwork()
    network.layer2[0] = Scaled(4, 8, 3, 2, 1)
    with pytest.raises(UserError, match=r"'layer2\.0' is a Scaled"):
        learn_steps(network, [images()], 4, 4)
    learn_steps(network, [images()], 4, 4, keep=["layer2.0"])
    assert list(quantized_layers(network)) == ["layer1.0", "classifier"]


def test_layers_that_do_not_run_are_refused_unless_they_are_kept() -> None:
    network: Any = TinyNetwork()
    network.auxiliary = nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match="'auxiliary' does not run"):
        learn_steps(network, [images()], 4, 4)
    learn_steps(network, [images()], 4, 4, keep=["auxiliary"])
    assert "auxiliary" not in quantized_layers(network)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100"])
def test_networks_of_timm(architecture: str) -> None:
    torch.manual_seed(0)
    network = create_network(architecture, num_classes=5, image_size=64).eval()
    original = copy.deepcopy(network)
    names, batch = set(network.state_dict()), images(4, size=64)
    learn_steps(network, [batch], 8, 8)
    assert names <= set(network.state_dict())
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert layers
    assert all(isinstance(m, QuantizedConv2d | QuantizedLinear) for m in layers)
    assert any(isinstance(m, QuantizedConv2dSame) for m in layers) == architecture.startswith("tf_")
    for name, layer in quantized_layers(network).items():
        assert layer.weight is network.get_parameter(f"backbone.{name}.weight")
    # each layer by itself, because an untrained network amplifies small errors
    with torch.no_grad():
        for name, layer in quantized_layers(network).items():
            value = layer_input(original, name, batch)
            expected = find_layer(original, name)(value)
            assert (layer(value) - expected).norm() < 0.1 * expected.norm()
    assert classifier_name(network) == classifier_name(original)
    assert count_macs(network, 64) == count_macs(original, 64)
    with feature_taps(network, ["features"], start_graph=True) as taps:
        logits = network(batch)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), taps["features"])
    assert gradient.shape == taps["features"].shape
    assert gradient.abs().sum() > 0


def layer_input(network: nn.Module, name: str, batch: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = find_layer(network, name).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].clone()))
    network(batch)
    handle.remove()
    return found[0]


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "size"), [(3, 2, 1, 9), (5, 2, 1, 8), (3, 1, 2, 7), (1, 3, 1, 8)]
)
@pytest.mark.parametrize("groups", [1, 4])
def test_same_padding_is_timms(kernel: int, stride: int, dilation: int, size: int, groups: int) -> None:
    from timm.layers import Conv2dSame

    layer: Any = Conv2dSame(4, 8, kernel, stride, dilation=dilation, groups=groups)
    plain: Any = copy.deepcopy(layer)
    quantize_layer(layer, 4, 5, True, True)
    value = torch.randn(2, 4, size, size + 3) * 8
    plain.weight.data = layer.quantized_weight().detach()
    assert torch.equal(layer(value), plain(layer.quantized_input(value)))
    assert isinstance(layer, QuantizedConv2dSame)


@pytest.mark.parametrize("options", [{"padding_mode": "reflect"}, {"padding": "same"}, {"groups": 2, "bias": False}])
def test_options_of_convolutions_are_kept(options: dict[str, Any]) -> None:
    layer: Any = nn.Conv2d(4, 6, 3, **{"padding": 1, **options})
    plain: Any = copy.deepcopy(layer)
    quantize_layer(layer, 4, 5, True, True)
    value = torch.randn(2, 4, 7, 7) * 8
    plain.weight.data = layer.quantized_weight().detach()
    assert torch.equal(layer(value), plain(layer.quantized_input(value)))


def test_channels_last_is_the_same_and_stays() -> None:
    network, batch = tiny(), images()
    expected = network(batch)
    network.to(memory_format=torch.channels_last)
    with feature_taps(network, ["layer2.0"]) as taps:
        logits = network(batch.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected)
    assert taps["layer2.0"].is_contiguous(memory_format=torch.channels_last)


def test_compiled_networks_compute_the_same_without_graph_breaks() -> None:
    network = tiny().train()
    network.dropout.p = 0.0
    compiled = torch.compile(copy.deepcopy(network), backend="aot_eager", fullgraph=True)
    for model in (network, compiled):
        model(images()).square().sum().backward()
    for one, other in zip(network.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_network_that_was_compiled_before_is_calibrated_and_compiled_again() -> None:
    network: Any = TinyNetwork(width=5).eval()
    network.layer1 = torch.compile(network.layer1, backend="eager")
    with torch.no_grad():  # as calibration runs it, so that nothing else makes it compile again
        network(images()), network(images(5, 1))
    learn_steps(network, [images(), images(5, 1)], 4, 4)
    assert list(quantized_layers(network)) == ["layer1.0", "layer2.0", "classifier"]
    assert torch.equal(network(images()), tiny()(images()))


def test_exported_networks_compute_the_same() -> None:
    network = tiny()
    program = torch.export.export(network, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images(5)), network(images(5)))


def test_training_with_four_bits_lowers_the_loss() -> None:
    data = Noise("train", 64)
    batch, labels = data.images / 255, torch.from_numpy(data.targets)
    network = tiny(4, 4, edge_bits=4).train()
    network.dropout.p = 0.0
    before = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(batch), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    for name, module in network.named_modules():
        if isinstance(module, StepQuantizer):
            assert not torch.equal(module.step, before.get_submodule(name).step)
            assert (step_sizes(module.step) > 0).all()


# Copies and files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_are_independent(duplicate: Callable[[Any], Any]) -> None:
    network = tiny()
    expected = network(images())
    twin = duplicate(network)
    assert torch.equal(twin(images()), expected)
    assert changes_of(twin) == changes_of(network)
    with torch.no_grad():
        twin.layer2[0].weight_quantizer.step.mul_(3)
        twin.layer2[0].input_quantizer.step.mul_(3)
    assert not torch.equal(twin(images()), expected)
    assert torch.equal(network(images()), expected)


@pytest.mark.parametrize(("weight_bits", "activation_bits", "edge_bits"), [(4, 4, 8), (2, 32, 32), (32, 3, 8)])
def test_a_checkpoint_rebuilds_the_network(weight_bits: int, activation_bits: int, edge_bits: int) -> None:
    network = TinyNetwork()
    learn_steps(network, [images() - 0.5], weight_bits, activation_bits, edge_bits=edge_bits)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network(images()).square().sum().backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save({"state_dict": network.state_dict(), "changes": changes_of(network)}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = TinyNetwork(seed=1)
    apply_changes(again, saved["changes"])
    again.load_state_dict(saved["state_dict"])
    assert torch.equal(again.eval()(images(seed=2)), network.eval()(images(seed=2)))
    assert changes_of(again) == changes_of(network) == json.loads(json.dumps(changes_of(network)))


def test_changes_that_do_not_fit_are_refused() -> None:
    change = changes_of(tiny())[0]
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.LazyLinear(7))
    impossible = copy.deepcopy(change)
    impossible["layers"]["classifier"]["weight_bits"] = 9
    norm = {**change, "layers": {"layer1.1": change["layers"]["layer1.0"]}}
    for network, wrong, message in (
        (other, change, "no layer 'layer1.0'"),
        (TinyNetwork(), impossible, "weight_bits of layer 'classifier' is 9"),
        (TinyNetwork(), norm, r"'layer1\.1' is a BatchNorm2d"),
    ):
        with pytest.raises(UserError, match=message):
            apply_changes(network, [wrong])
        assert not quantized_layers(network)
        assert changes_of(network) == []


@given(st.integers(1, 8), st.integers(0, 70), st.integers(0, 2**32))
def test_packing_is_exact(bits: int, count: int, seed: int) -> None:
    values = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.int16)
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == packed_bits(values.tolist(), bits)
    assert torch.equal(unpack(packed, bits, count), values)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_packed_networks_compute_the_same(bits: int, per_channel: bool) -> None:
    network = tiny(bits, bits, per_channel=per_channel)
    with torch.no_grad():
        network.layer2[0].weight_quantizer.step[0] *= -1  # its magnitude counts
    packed = packed_state(network)
    assert packed["layer2.0.weight_codes"].numel() == math.ceil(10 * 5 * 9 * bits / 8)
    assert "layer2.0.weight" not in packed
    state = unpack_state(packed)
    assert state.keys() == network.state_dict().keys()
    assert torch.equal(state["layer2.0.weight"], network.layer2[0].quantized_weight())
    again = TinyNetwork(width=5).eval()
    apply_changes(again, changes_of(network))
    again.load_state_dict(state)
    assert torch.equal(again(images(seed=4)), network(images(seed=4)))
    assert_same(packed_state(again), packed)


def test_float_layers_are_not_packed() -> None:
    network = tiny(32, 4)
    packed = packed_state(network)
    assert packed.keys() == network.state_dict().keys()
    assert_same(unpack_state(packed), dict(network.state_dict()))


def test_packed_weights_take_four_bits_each() -> None:
    network = create_network("test_resnet", num_classes=5, image_size=64).eval()
    learn_steps(network, [images(2, size=64)], 4, 4, edge_bits=4)
    state, packed = network.state_dict(), packed_state(network)
    layers = quantized_layers(network).values()
    weights = sum(layer.weight.numel() for layer in layers)
    layouts = sum(8 * (1 + layer.weight.ndim) for layer in layers)
    before = sum(value.nbytes for value in state.values())
    assert sum(value.nbytes for value in packed.values()) == before - 4 * weights + weights // 2 + layouts
