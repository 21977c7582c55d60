"""Channels that are removed, against networks in which nothing reads them any more."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.footprint import count_macs, count_parameters
from compresslens.networks import create_network
from compresslens.networks.changes import apply_changes, changes_of
from compresslens.pruning.channel_groups import trace
from compresslens.pruning.channels import least_widths, remove_channels, select_channels
from compresslens.pruning.untouched import left_as_found
from tests.lightning_modules.tiny import TinyNetwork
from tests.pruning.networks import ALL, Concatenated, Depthwise, Grouped, Plain, Residual, trained

Build = Callable[[], nn.Module]


def timm(name: str, size: int = 64) -> Build:
    def build() -> nn.Module:
        return create_network(name, num_classes=5, image_size=size)

    build.__name__ = name
    return build


def torchvision_densenet() -> nn.Module:
    from torchvision.models import densenet121

    return densenet121(num_classes=5)


FAMILY: list[Any] = [*ALL, timm("test_resnet"), timm("test_efficientnet"), timm("mobilenetv2_050")]
SLOW = [timm(name) for name in ("resnet50", "resnext50_32x4d", "tf_efficientnet_lite0", "mobilenetv3_small_050")]
FAMILY += [pytest.param(build, marks=pytest.mark.slow) for build in (*SLOW, torchvision_densenet)]


def built(build: Build) -> tuple[nn.Module, int]:
    """A network that has seen something, and the size of its images."""
    torch.manual_seed(0)
    network = trained(build())
    return network, 16 if build in ALL else 64


def images_for(size: int, number: int = 4) -> Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def cost(network: nn.Module, size: int, kind: str) -> int:
    return count_macs(network, size) if kind == "macs" else count_parameters(network)[0]


def halved(network: nn.Module, size: int, **options: Any) -> list[Any]:
    total = count_macs(network, size)
    return select_channels(network, size, "macs", total / 2, 0.05 * total, **options)[0]


def nothing_reads(network: nn.Module, size: int, removals: list[Any]) -> nn.Module:
    """A copy whose weights for the channels are zero in all layers that would read them; as wide as before."""
    network = copy.deepcopy(network)
    root = getattr(network, "backbone", network)
    with left_as_found(network):
        graph = trace(root, size)
        for name, _, channels in removals:
            layer = root.get_submodule(name)
            group = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, channels)
            for item in group:
                target = item.dep.layer
                if item.dep.handler.__name__ != "prune_in_channels" or not isinstance(target, nn.Conv2d | nn.Linear):
                    continue
                for index in item.idxs:
                    per_group = target.weight.shape[1]
                    part, column = divmod(index, per_group)
                    filters = len(target.weight) * per_group // getattr(target, "in_channels", per_group)
                    target.weight.data[part * filters : (part + 1) * filters, column] = 0
    return network


@pytest.mark.parametrize("kind", ["parameters", "macs"])
@pytest.mark.parametrize("build", FAMILY, ids=lambda build: build.__name__)
def test_costs_are_foreseen(build: Build, kind: Any) -> None:
    network, size = built(build)
    total = cost(network, size, kind)
    removals, foreseen = select_channels(network, size, kind, 0.5 * total, 0.05 * total)
    assert cost(network, size, kind) == total, "nothing happens yet"
    remove_channels(network, size, removals)
    assert cost(network, size, kind) == pytest.approx(foreseen, abs=1e-3)
    assert 0.45 * total <= foreseen <= 0.5 * total


@pytest.mark.parametrize("build", FAMILY, ids=lambda build: build.__name__)
def test_removal_is_as_if_nothing_read_the_channels(build: Build) -> None:
    network, size = built(build)
    network.eval()
    removals = halved(network, size)
    expected = nothing_reads(network, size, removals).eval()
    whole = network(images_for(size))
    remove_channels(network, size, removals)
    with torch.no_grad():
        logits = network(images_for(size))
        torch.testing.assert_close(logits, expected(images_for(size)), rtol=1e-3, atol=1e-4)
    assert (logits - whole).abs().max() > 1e-3, "the test would not notice"


@pytest.mark.parametrize("build", FAMILY, ids=lambda build: build.__name__)
def test_what_was_removed_can_be_removed_again_from_a_fresh_network(build: Build) -> None:
    network, size = built(build)
    fresh = copy.deepcopy(network).train()
    for share in (0.8, 0.6):
        wanted = share * count_parameters(network)[0]
        remove_channels(network, size, select_channels(network, size, "parameters", wanted, 0.05 * wanted)[0])
    changes = json.loads(json.dumps(changes_of(network)))
    assert [change["kind"] for change in changes] == ["remove_channels"] * 2
    apply_changes(fresh, changes)
    assert changes_of(fresh) == changes_of(network)
    fresh.load_state_dict(network.state_dict())
    network.eval()
    fresh.eval()
    with torch.no_grad():
        assert torch.equal(network(images_for(size)), fresh(images_for(size)))


@pytest.mark.parametrize("build", FAMILY, ids=lambda build: build.__name__)
def test_the_network_still_trains(build: Build) -> None:
    network, size = built(build)
    remove_channels(network, size, halved(network, size))
    network.train()
    network(images_for(size)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    optimizer.step()
    assert torch.isfinite(network.eval()(images_for(size))).all()


def test_the_cut_weights_are_the_ones_that_stay() -> None:
    network, size = built(Plain)
    assert isinstance(network, Plain)
    before = copy.deepcopy(network)
    remove_channels(network, size, [("conv2", True, [1, 4, 5])])
    rest = [0, 2, 3, 6, 7, 8, 9, 10, 11]
    columns = [16 * channel + place for channel in rest for place in range(16)]
    assert torch.equal(network.conv2.weight, before.conv2.weight[rest])
    assert torch.equal(network.hidden.weight, before.hidden.weight[:, columns])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(network.bn, name), getattr(before.bn, name)[rest])
    assert torch.equal(network.conv1.weight, before.conv1.weight)
    assert network.bn.num_features == network.conv2.out_channels == 9


# Choice ---------------------------------------------------------------------------------------------------------------


def widths(network: nn.Module) -> dict[str, int]:
    return {
        name: len(layer.weight)  # type: ignore[arg-type]
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "lamp", "random", "geometric_median", "bn_scale"])
def test_every_criterion_meets_the_cost(criterion: str) -> None:
    network, size = built(timm("test_resnet"))
    gradients = {name: parameter.detach().cos() for name, parameter in network.named_parameters()}
    total = count_macs(network, size)
    options: dict[str, Any] = {"criterion": criterion, "gradients": gradients, "seed": 3}
    removals, foreseen = select_channels(network, size, "macs", 0.6 * total, 0.01 * total, **options)
    assert 0.59 * total <= foreseen <= 0.6 * total
    again, _ = select_channels(network, size, "macs", 0.6 * total, 0.01 * total, **options)
    assert again == removals
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_least_important_go_first() -> None:
    network, size = built(Plain)
    assert isinstance(network, Plain)
    with torch.no_grad():
        network.hidden.weight[[2, 7, 11]] *= 1e-4
        network.fc.weight[:, [2, 7, 11]] *= 1e-4
    wanted = count_parameters(network)[0] - 3 * (192 + 1 + 5)
    removals, foreseen = select_channels(network, size, "parameters", wanted)
    assert removals == [("hidden", True, [2, 7, 11])]
    assert foreseen == wanted


def test_blocks_are_exchanged_where_they_are_too_large() -> None:
    """Taking the least important ones in turn ends 1.7 % from what is wanted."""
    network = TinyNetwork(16)
    wanted = 0.4 * count_parameters(network)[0]
    removals, foreseen = select_channels(network, 12, "parameters", wanted, 0.01 * wanted)
    assert foreseen == pytest.approx(wanted, rel=0.01)
    remove_channels(network, 12, removals)
    assert count_parameters(network)[0] == foreseen


def test_a_saving_that_no_exchange_can_meet_leaves_the_costs_right() -> None:
    network = TinyNetwork(8)
    total = count_parameters(network)[0]
    removals, foreseen = select_channels(network, 12, "parameters", total - 100, 1)
    assert foreseen > total - 99
    remove_channels(network, 12, removals)
    assert count_parameters(network)[0] == foreseen


def test_equal_shares_of_all_layers() -> None:
    network, size = built(Residual)
    before = widths(network)
    remove_channels(network, size, halved(network, size, scope="layer"))
    shares = {name: width / before[name] for name, width in widths(network).items() if name not in ("stem", "fc")}
    assert max(shares.values()) - min(shares.values()) <= 1 / 16 + 1e-9
    assert max(shares.values()) < 0.8


def test_kept_layers_keep_their_outputs() -> None:
    network, size = built(Residual)
    remove_channels(network, size, halved(network, size, keep=["wide1", "inner1"]))
    left = widths(network)
    assert {name: left[name] for name in ("stem", "wide1", "inner1", "fc")} == {
        "stem": 12,
        "wide1": 20,
        "inner1": 24,
        "fc": 5,
    }
    assert left["enter"] < 16


def test_the_first_convolution_may_be_cut_but_never_the_classifier() -> None:
    network, size = built(Residual)
    remove_channels(network, size, halved(network, size, keep_first=False, scope="layer"))
    left = widths(network)
    assert left["stem"] < 12
    assert left["fc"] == 5


@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_are_multiples(round_to: int) -> None:
    network, size = built(timm("test_resnet"))
    network.backbone.layer1[0].conv1 = nn.Conv2d(32, 27, 3, 1, 1, bias=False)
    network.backbone.layer1[0].bn1 = nn.BatchNorm2d(27)
    network.backbone.layer1[0].conv2 = nn.Conv2d(27, 32, 3, 1, 1, bias=False)
    before = widths(network)
    remove_channels(network, size, halved(network, size, round_to=round_to))
    cut = {name: width for name, width in widths(network).items() if width != before[name]}
    assert len(cut) > 3
    assert all(width % round_to == 0 for width in cut.values())


def test_no_layer_gets_too_narrow() -> None:
    network, size = built(timm("test_resnet"))
    least = least_widths(network, 0.25)
    before = widths(network)
    removals, foreseen = select_channels(network, size, "macs", 0.0, least=least)
    remove_channels(network, size, removals)
    assert all(width >= 0.75 * before[name] for name, width in widths(network).items())
    assert count_macs(network, size) == foreseen


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_everything_that_can_go(build: Build) -> None:
    network, size = built(build)
    removals, foreseen = select_channels(network, size, "parameters", 0.0)
    remove_channels(network, size, removals)
    assert count_parameters(network)[0] == foreseen
    assert min(widths(network).values()) >= 1
    assert torch.isfinite(network.eval()(images_for(size))).all()


def test_nothing_to_do() -> None:
    network, size = built(Plain)
    removals, foreseen = select_channels(network, size, "parameters", count_parameters(network)[0])
    assert removals == []
    assert foreseen == count_parameters(network)[0]
    remove_channels(network, size, removals)
    assert changes_of(network) == []


def test_groups_of_convolutions_stay_even() -> None:
    network, size = built(Grouped)
    assert isinstance(network, Grouped)
    remove_channels(network, size, halved(network, size))
    assert network.first.out_channels % 4 == 0
    assert network.first.out_channels < 24
    assert network.second.out_channels % 2 == 0
    assert network.stem.out_channels == 16


# What it leaves alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [Depthwise, Concatenated, timm("test_resnet")], ids=lambda build: build.__name__)
def test_flags_formats_and_random_state_stay(build: Build) -> None:
    network, size = built(build)
    network.to(memory_format=torch.channels_last).train()
    frozen = next(name for name, parameter in network.named_parameters() if parameter.ndim == 4)
    network.get_parameter(frozen).requires_grad_(False)
    next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    modes = [module.training for module in network.modules()]
    values = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    removals = halved(network, size)
    assert all(torch.equal(values[name], value) for name, value in network.state_dict().items()), "statistics, too"
    before = dict(network.named_parameters())
    remove_channels(network, size, removals)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert [name for name, parameter in network.named_parameters() if not parameter.requires_grad] == [frozen]
    assert all(
        parameter.is_contiguous(memory_format=torch.channels_last)
        for parameter in network.parameters()
        if parameter.ndim == 4
    )
    same = [name for name, parameter in network.named_parameters() if parameter is before[name]]
    assert same, "parameters that were not cut stay the same objects"
    shapes = {name: parameter.shape for name, parameter in network.named_parameters() if name not in same}
    assert all(shape != before[name].shape for name, shape in shapes.items())
    assert list(before) == [name for name, _ in network.named_parameters()], "in their order"


# Bad input ------------------------------------------------------------------------------------------------------------


def test_a_layer_that_is_not_there() -> None:
    network, size = built(Residual)
    with pytest.raises(UserError, match=r"no layer 'inner' in Residual. Nearest: inner"):
        halved(network, size, keep=["inner"])


@pytest.mark.parametrize(
    "history",
    [[["nowhere", True, [0]]], [["conv2", True, [50]]], [["conv2", True, list(range(12))]]],
    ids=["layer", "channel", "all"],
)
def test_a_change_of_another_network(history: list[Any]) -> None:
    network, _ = built(Plain)
    with pytest.raises(UserError, match="channels cannot be removed from Plain: "):
        apply_changes(network, [{"kind": "remove_channels", "image_size": 16, "history": history}])


def test_a_network_that_cannot_be_traced() -> None:
    class Detached(Plain):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(images)

    with pytest.raises(UserError, match="no channels of Detached can be removed"):
        halved(Detached(), 16)
