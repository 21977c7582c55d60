from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.footprint import count_macs, count_parameters
from compresslens.pruning.layers import prunable_layers, uses_per_weight, weight_layers, weights_of
from compresslens.pruning.masks import MaskedWeights, Masks
from compresslens.pruning.targets import Target
from compresslens.pruning.weight_pruning import WeightPruning, parse_pattern
from tests.lightning_modules.tiny import TinyNetwork
from tests.pruning.networks import ALL, Plain, Residual, trained

SIZE = 16


def residual() -> Residual:
    torch.manual_seed(0)
    network = trained(Residual())
    assert isinstance(network, Residual)
    return network


def pruned(network: nn.Module, pruning: WeightPruning, **options: Any) -> Masks:
    """The masks, applied."""
    masks = pruning.masks(network, pruning.budget(network, SIZE), **options)
    MaskedWeights(weights_of(weight_layers(network)), masks).apply()
    return masks


def macs_of_nonzero_weights(network: nn.Module) -> int:
    """Counted by hand: the positions of each layer's output times its weights that are not zero."""
    total = 0

    def count(module: Any, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        total += positions * int(module.weight.count_nonzero())

    handles = [layer.register_forward_hook(count) for layer in weight_layers(network).values()]
    network.eval()(torch.zeros(1, 3, SIZE, SIZE))
    for handle in handles:
        handle.remove()
    return total


# Layers ---------------------------------------------------------------------------------------------------------------


def test_which_layers_are_pruned() -> None:
    network = residual()
    assert list(prunable_layers(network)) == ["enter", "inner1", "inner2", "wide1", "wide2", "project"]
    assert list(prunable_layers(network, ["wide1", "enter"])) == ["inner1", "inner2", "wide2", "project"]
    assert next(iter(prunable_layers(network, keep_first_and_last=False))) == "stem"
    assert list(prunable_layers(TinyNetwork(), ["layer2"])) == [], "a block is kept with all that is in it"


def test_a_weight_that_layers_share_is_pruned_once() -> None:
    network = residual()
    network.inner2.weight = network.inner1.weight
    assert "inner2" not in weight_layers(network)


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_uses_add_up_to_the_networks_macs(build: Any) -> None:
    network = build().train()
    uses = uses_per_weight(network, SIZE)
    assert network.training
    total = sum(uses[layer] * layer.weight.numel() for layer in weight_layers(network).values())
    assert total == count_macs(network, SIZE)


# Targets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "random", "taylor"])
def test_sparsity(scope: Any, sparsity: float, criterion: str) -> None:
    network = residual()
    gradients = {name: parameter.detach().cos() for name, parameter in network.named_parameters()}
    layers = prunable_layers(network)
    total = sum(layer.weight.numel() for layer in layers.values())
    masks = pruned(network, WeightPruning(Target("sparsity", sparsity), criterion, scope), gradients=gradients)
    assert sum(int((layer.weight == 0).sum()) for layer in layers.values()) == round(sparsity * total)
    assert masks["stem"].all()
    assert masks["fc"].all()
    assert (network.stem.weight != 0).all()


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("target", [Target("parameters", 0.25), Target("parameters", 4000)])
def test_parameters(scope: Any, target: Target) -> None:
    network = residual()
    total = count_parameters(network)[0]
    pruned(network, WeightPruning(target, scope=scope))
    wanted = round(total / 4) if target.value < 1 else 4000
    assert count_parameters(network) == (total, wanted)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("value", [0.2, 0.5, 150_000])
def test_macs(scope: Any, value: float) -> None:
    network = residual()
    total = count_macs(network, SIZE)
    pruned(network, WeightPruning(Target("macs", value), scope=scope))
    wanted = value if value > 1 else value * total
    assert macs_of_nonzero_weights(network) == pytest.approx(wanted, rel=0.01)


def test_macs_are_saved_where_they_are_many() -> None:
    """In all layers the weights are alike; those of the first maps, which are larger, are dearer."""
    network = Residual()
    for layer in weight_layers(network).values():
        nn.init.ones_(layer.weight)
    masks = pruned(network, WeightPruning(Target("macs", 0.5)))
    assert masks["wide1"].all()
    assert not masks["enter"].any()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_shares_of_the_way(share: float) -> None:
    network = residual()
    total = sum(layer.weight.numel() for layer in prunable_layers(network).values())
    masks = pruned(network, WeightPruning(Target("sparsity", 0.8)), share=share)
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(share * round(0.8 * total))


# N:M ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["l1", "lamp"])
def test_two_of_four(criterion: str, caplog: pytest.LogCaptureFixture) -> None:
    network = trained(Plain())
    assert isinstance(network, Plain)
    nn.init.normal_(network.fc.weight)
    with caplog.at_level(logging.WARNING):
        masks = pruned(network, WeightPruning((2, 4), criterion))
    assert caplog.messages == []
    assert network.conv2.weight.movedim(1, -1).reshape(-1, 4).count_nonzero(1).eq(2).all()
    assert network.hidden.weight.reshape(-1, 4).count_nonzero(1).eq(2).all()
    assert masks["conv1"].all()


def test_layers_that_do_not_fit_stay_dense_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    network = residual()
    with caplog.at_level(logging.WARNING):
        masks = pruned(network, WeightPruning((3, 8)))
    assert caplog.messages == ["not pruned, because their input channels are no multiple of 8: enter, wide2"]
    assert masks["enter"].all()
    assert masks["inner1"].double().mean() == 3 / 8


def test_a_pattern_in_several_updates() -> None:
    network = residual()
    pruning = WeightPruning((1, 4))
    budget = pruning.budget(network, SIZE)
    alive, zeros = None, []
    for share in (0.0, 0.2, 0.4, 2 / 3, 0.8, 1.0):
        masks = pruning.masks(network, budget, share, alive)
        rows = masks["inner1"].movedim(1, -1).reshape(-1, 4)
        assert len(set(rows.sum(1).tolist())) == 1
        zeros.append(4 - int(rows[0].sum()))
        assert alive is None or not (masks["inner1"] & ~alive["inner1"]).any()
        alive = masks
    assert zeros == [0, 0, 1, 2, 2, 3]


# What was pruned before -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("target", [Target("sparsity", 0.9), Target("parameters", 0.2), Target("macs", 0.15)])
def test_a_network_that_was_pruned_before(scope: Any, target: Target) -> None:
    network = residual()
    before = pruned(network, WeightPruning(Target("sparsity", 0.5), keep_first_and_last=False, criterion="random"))
    total = count_macs(network, SIZE), count_parameters(network)[0]
    masks = pruned(network, WeightPruning(target, scope=scope))
    assert all(not (masks[name] & ~before[name]).any() for name in before), "what is zero stays zero"
    assert not masks["stem"].all(), "in layers that are kept now, too"
    if target.kind == "sparsity":
        kept = prunable_layers(network).values()
        assert sum(int((layer.weight == 0).sum()) for layer in kept) == round(
            0.9 * sum(layer.weight.numel() for layer in kept)
        )
    elif target.kind == "parameters":
        assert count_parameters(network)[1] == round(0.2 * total[1])
    else:
        assert macs_of_nonzero_weights(network) == pytest.approx(0.15 * total[0], rel=0.01)


def test_a_network_that_is_sparser_than_wanted() -> None:
    network = residual()
    pruned(network, WeightPruning(Target("sparsity", 0.5)))
    with pytest.raises(UserError, match=r"sparsity=0.4 cannot be met within 1 %: .* is sparsity 0.5$"):
        WeightPruning(Target("sparsity", 0.4)).budget(network, SIZE)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target("parameters", 0.01), r"parameters=0.01 cannot be met within 1 %: the nearest .* is parameters \d+"),
        (Target("parameters", 10**6), r"is parameters 16,929$"),
        (Target("macs", 0.001), r"macs=0.001 cannot be met"),
        (Target("macs", 10**9), r"is macs 621,984$"),
    ],
)
def test_targets_that_cannot_be_met(target: Target, message: str) -> None:
    with pytest.raises(UserError, match=message):
        WeightPruning(target).budget(residual(), SIZE)


def test_layers_to_keep_that_are_not_there() -> None:
    with pytest.raises(UserError, match=r"no layer 'inner3' in Residual. Nearest: inner"):
        WeightPruning(Target("sparsity", 0.5), keep=("inner3",)).budget(residual(), SIZE)


def test_nothing_is_left_to_prune() -> None:
    with pytest.raises(UserError, match="there is no layer that can be pruned"):
        WeightPruning(Target("sparsity", 0.5), keep=("layer1", "layer2")).budget(TinyNetwork(), 12)


@pytest.mark.parametrize("text", ["4:2", "2:2", "0:4", "2-4", "2:4:8", ""])
def test_patterns_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="is not of the form n:m"):
        parse_pattern(text)


def test_patterns() -> None:
    assert parse_pattern("2:4") == (2, 4)
    assert parse_pattern("1:16") == (1, 16)


def test_a_criterion_that_weights_do_not_have() -> None:
    with pytest.raises(UserError, match="no criterion 'bn_scale' for single weights"):
        WeightPruning(Target("sparsity", 0.5), "bn_scale")
