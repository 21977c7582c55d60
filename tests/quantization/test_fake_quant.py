"""The fake-quantized graph: it computes what the network does but for rounding, and its modes can be trusted."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compresslens.errors import UserError
from compresslens.networks import PixelNetwork, apply_changes, changes_of, create_network
from compresslens.quantization import calibrate, fake_quantize
from compresslens.quantization.fake_quant import FakeQuantGraph, quantized_graph
from tests.lightning_modules.tiny import SIZE
from tests.quantization.networks import images, residual


def quantized(network: PixelNetwork | None = None, float_layers: tuple[str, ...] = ()) -> Any:
    network = residual() if network is None else network
    fake_quantize(network, float_layers)
    calibrate(network, [images(), images(9, 1)])
    return network


def graph_of(network: nn.Module) -> FakeQuantGraph:
    graph = quantized_graph(network)
    assert graph is not None
    return graph


def without_rounding(network: Any) -> Any:
    for quantizer in (*graph_of(network).weight_quantizers(), *graph_of(network).activation_quantizers()):
        quantizer.disable_fake_quant()
    return network


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, torch.Tensor], network: nn.Module) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}


# What it computes -----------------------------------------------------------------------------------------------------


def test_without_rounding_it_is_the_network() -> None:
    network, x = residual(), images()
    twin = without_rounding(quantized(copy.deepcopy(network)))
    torch.testing.assert_close(twin(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "tf_mobilenetv3_small_minimal_100",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("test_resnet", "test_efficientnet")),
    ],
)
def test_networks_of_timm(name: str) -> None:
    """All convolutions and linear layers are quantized, also those of subclasses, and nothing else changes."""
    network = create_network(name, 5, image_size=64).eval()
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())
    x = torch.rand(2, 3, 64, 64)
    expected = network(x)
    fake_quantize(network)
    assert len(graph_of(network).weight_quantizers()) == layers
    torch.testing.assert_close(without_rounding(network)(x), expected, rtol=1e-3, atol=1e-4)


def test_training_mode_is_the_network_too() -> None:
    """The same batch statistics and the same momentum; dropout is off so that both draw nothing."""
    network = residual(dropout=0.0)
    twin = without_rounding(quantized(copy.deepcopy(network)))
    network.train(), twin.train()
    torch.testing.assert_close(twin(images()), network(images()), rtol=1e-4, atol=1e-4)
    own, ours = network.state_dict(), twin.state_dict()
    for name in ("bn1.running_mean", "bn1.running_var", "bn2.running_mean", "bn2.running_var"):
        torch.testing.assert_close(ours[f"backbone.graph.{name}"], own[f"backbone.{name}"], rtol=1e-4, atol=1e-5)


def test_dropout_keeps_its_rate() -> None:
    """torchao writes 0.5 into the graph at the first change of mode."""
    twin = quantized(residual(dropout=0.1))
    for mode in (True, False, True):
        twin.train(mode)
        twin(images(2))
        nodes = [node for node in graph_of(twin).graph.graph.nodes if "dropout" in str(node.target)]
        assert [node.args[1:] for node in nodes] == [(0.1, mode)]


def test_rounding_errors_are_at_most_half_a_step() -> None:
    """Of every weight, and of every activation within its range; what the quantizers really get and give."""
    twin = quantized()
    graph = graph_of(twin)
    quantizers = [*graph.weight_quantizers(), *graph.activation_quantizers()]
    seen: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
    for quantizer in quantizers:
        quantizer.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
    with torch.no_grad():
        twin(images(16, 7))
    assert {id(module) for module, _, _ in seen} == {id(quantizer) for quantizer in quantizers}
    for module, value, rounded in seen:
        steps = module.scale.reshape(-1, *[1] * (value.ndim - 1)) if module.is_per_channel else module.scale
        zero = module.zero_point.reshape(steps.shape)
        low, high = (module.quant_min - zero) * steps, (module.quant_max - zero) * steps
        error = (rounded - value.clamp(low, high)).abs()
        assert bool((error <= steps / 2 * (1 + 1e-4)).all())
        assert bool(error.any()), "something was rounded"


def test_a_gamma_of_zero_gives_no_nan() -> None:
    network = residual()
    nn.init.zeros_(network.backbone.bn2.weight)  # type: ignore[union-attr]
    expected = network(images())
    twin = quantized(network)
    assert torch.isfinite(twin(images())).all()
    torch.testing.assert_close(without_rounding(twin)(images()), expected, rtol=1e-3, atol=1e-3)
    twin.train()
    twin(images()).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in twin.parameters() if p.grad is not None)


def test_stochastic_depth_is_off() -> None:
    network = create_network("test_resnet", 5, image_size=32)
    for module in network.modules():
        if hasattr(module, "drop_path"):
            from timm.layers import DropPath

            module.drop_path = DropPath(0.5)  # type: ignore[assignment]
    twin = quantized_like(network)
    twin.eval()
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(twin(x), twin(x))


def quantized_like(network: PixelNetwork) -> PixelNetwork:
    network.train()
    fake_quantize(network)
    calibrate(network, [torch.rand(4, 3, 32, 32)])
    return network


def test_pooled_and_unpooled_activations_share_the_range_of_the_unpooled() -> None:
    """torchao's own observer averages over both and so cuts the greatest activations off."""
    network = residual()
    twin = quantized(copy.deepcopy(network))
    seen: list[float] = []
    network.backbone.pool.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _, inputs: seen.append(float(inputs[0].max()))
    )
    network(images()), network(images(9, 1))
    reached = [float(q.activation_post_process.max_val) for q in graph_of(twin).activation_quantizers()]
    assert any(value == pytest.approx(sum(seen) / 2, rel=1e-4) for value in reached)


def test_layers_can_stay_in_float() -> None:
    graph = graph_of(quantized(float_layers=("conv", "fc")))
    assert len(graph.weight_quantizers()) == 1


# Modes and state ------------------------------------------------------------------------------------------------------


def test_evaluation_changes_nothing() -> None:
    twin = quantized().eval()
    before = state(twin)
    with torch.no_grad():
        twin(images(5, 3) * 5)
    assert changed(before, twin) == set()


def test_flags_set_one_by_one_are_obeyed_too() -> None:
    """As by probes that restore them, and by `copy.deepcopy(network).eval()`."""
    twin = quantized().train()
    for module in twin.modules():
        module.training = False
    before = state(twin)
    assert torch.equal(twin(images()), twin(images()))
    assert changed(before, twin) == set()
    copied = copy.deepcopy(twin.train()).eval()
    before = state(copied)
    assert torch.equal(copied(images()), copied(images()))
    assert changed(before, copied) == set()
    assert twin.backbone.training
    assert all(not module.training for module in copied.modules())


def test_training_moves_ranges_and_statistics() -> None:
    twin = quantized().train()
    before = state(twin)
    twin(images(8, 5) * 3)
    moved = changed(before, twin)
    assert "backbone.graph.bn1.running_mean" in moved
    assert any(name.endswith("max_val") for name in moved)
    assert not any("num_batches_tracked" in name for name in moved)


def test_what_is_frozen_stays() -> None:
    twin = quantized().train()
    graph = graph_of(twin)
    graph.observers_frozen = graph.batchnorm_frozen = True
    before = state(twin)
    twin(images(8, 5) * 3)
    assert not {name for name in changed(before, twin) if "running" in name}
    activations = {id(q) for q in graph.activation_quantizers()}
    for name, module in graph.graph.named_modules():
        if id(module) in activations:
            assert not {n for n in changed(before, twin) if n.startswith(f"backbone.graph.{name}.")}
    graph.observers_frozen = graph.batchnorm_frozen = False
    twin(images(8, 5) * 3)
    assert {name for name in changed(before, twin) if "running" in name}


def test_calibration_leaves_the_modes_and_the_random_state() -> None:
    twin = residual().train()
    fake_quantize(twin)
    flags = [module.training for module in twin.modules()]
    random_state = torch.get_rng_state()
    calibrate(twin, [images()])
    assert [module.training for module in twin.modules()] == flags
    assert all(flags)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(q.fake_quant_enabled[0] == 1 for q in graph_of(twin).activation_quantizers())

    def broken() -> Any:
        yield images()
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        calibrate(twin, broken())
    assert [module.training for module in twin.modules()] == flags
    assert all(q.fake_quant_enabled[0] == 1 for q in graph_of(twin).activation_quantizers())


def test_calibration_is_the_mean_of_the_batches() -> None:
    twin = residual()
    fake_quantize(twin)
    batches = [images(6, seed) for seed in range(3)]
    calibrate(twin, batches)
    first = graph_of(twin).activation_quantizers()[0].activation_post_process  # of the normalized images
    normalized = [twin.normalize(batch) for batch in batches]
    assert float(first.max_val) == pytest.approx(sum(float(b.max()) for b in normalized) / 3, rel=1e-5)
    assert float(first.min_val) == pytest.approx(sum(float(b.min()) for b in normalized) / 3, rel=1e-5)


# Structure ------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_rebuilds_it() -> None:
    twin = quantized(float_layers=("conv",))
    file = io.BytesIO()
    torch.save({"changes": changes_of(twin), "state_dict": twin.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    other = residual(seed=5)
    apply_changes(other, content["changes"])
    other.load_state_dict(content["state_dict"])
    assert changes_of(other) == changes_of(twin)
    assert torch.equal(other(images()), twin(images()))


def refuse_twice() -> None:
    fake_quantize(quantized())


def refuse_no_backbone() -> None:
    fake_quantize(nn.Linear(2, 2))


def refuse_no_batches() -> None:
    network = residual()
    fake_quantize(network)
    calibrate(network, [])


def refuse_a_float_network() -> None:
    calibrate(residual(), [images()])


def refuse_nan() -> None:
    network = residual()
    nn.init.constant_(network.backbone.conv.weight, float("nan"))  # type: ignore[union-attr]
    quantized(network)


def refuse_untraceable() -> None:
    class Branches(nn.Module):
        num_classes = 2

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3 * SIZE * SIZE, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))

    fake_quantize(PixelNetwork(Branches(), (0.5,) * 3, (0.5,) * 3, "branches", 2, SIZE))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (refuse_twice, "has fake quantizers already"),
        (refuse_no_backbone, "wrap it in compresslens.networks.PixelNetwork"),
        (refuse_no_batches, "at least one batch"),
        (refuse_a_float_network, "no fake quantizers to calibrate"),
        (refuse_nan, "not finite"),
        (refuse_untraceable, "torch.export cannot capture the network"),
        (lambda: quantized(float_layers=("convv",)), "Nearest: conv"),
    ],
)
def test_what_is_refused(act: Callable[[], None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        act()
