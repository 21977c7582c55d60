from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.pruning.channel_groups import Group, read_groups, trace
from compresslens.pruning.channel_importance import channel_importance, relative
from compresslens.pruning.layers import kept_modules, uses_per_weight
from compresslens.pruning.untouched import left_as_found
from tests.pruning.networks import Concatenated, Grouped, Plain, Residual, trained
from tests.references import pruning as reference


def groups_of(network: nn.Module, criterion: str, seed: int = 0, gradients: bool = False) -> dict[str, Group]:
    kept, uses = kept_modules(network), uses_per_weight(network, 16)
    with left_as_found(network):
        for parameter in network.parameters():
            parameter.grad = parameter.detach().sin() if gradients else None
        groups = read_groups(trace(network, 16), channel_importance(criterion, seed), kept, uses)
    return {group.root: group for group in groups}


def mean_of(*parts: Tensor) -> Tensor:
    total = sum(part.double() for part in parts) / len(parts)
    assert isinstance(total, Tensor)
    return total / total.mean()


@pytest.fixture
def plain() -> Plain:
    torch.manual_seed(0)
    network = trained(Plain())
    assert isinstance(network, Plain)
    return network


@pytest.mark.parametrize("power", [1, 2])
def test_magnitude_of_all_that_would_go(plain: Plain, power: int) -> None:
    """The channels of conv2: its filters, the normalization's scales, 16 columns of the linear layer each."""
    scores = groups_of(plain, f"l{power}")["conv2"].scores
    with torch.no_grad():
        filters = plain.conv2.weight.abs().pow(power).sum((1, 2, 3))
        columns = plain.hidden.weight.abs().pow(power).sum(0).view(12, 16).sum(1)
        expected = mean_of(filters, plain.bn.weight.abs().pow(power), columns)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


def test_scales_of_normalizations(plain: Plain) -> None:
    groups = groups_of(plain, "bn_scale")
    torch.testing.assert_close(groups["conv2"].scores, mean_of(plain.bn.weight.detach()), rtol=1e-5, atol=0)
    assert set(groups) == {"conv2"}, "nothing is known of the linear layer"


def test_first_order(plain: Plain) -> None:
    scores = groups_of(plain, "taylor", gradients=True)["hidden"].scores
    with torch.no_grad():
        products = [(layer.weight * layer.weight.sin()).abs() for layer in (plain.hidden, plain.fc)]
        expected = mean_of(products[0].sum(1), products[1].sum(0))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


def test_lamp_of_the_groups_sums(plain: Plain) -> None:
    scores = groups_of(plain, "lamp")["hidden"].scores
    with torch.no_grad():
        sums = (plain.hidden.weight.square().sum(1) + plain.fc.weight.square().sum(0)) / 2
    assert scores.tolist() == pytest.approx(reference.lamp(sums.tolist()), rel=1e-5)


def test_geometric_median() -> None:
    torch.manual_seed(0)
    network = trained(Residual())
    assert isinstance(network, Residual)
    scores = groups_of(network, "geometric_median")["enter"].scores
    distances = [
        torch.tensor(reference.distances_to_others(layer.weight.detach().double().flatten(1).tolist()))
        for layer in (network.enter, network.inner2)  # both add to the same channels
    ]
    torch.testing.assert_close(scores, mean_of(*distances).double(), rtol=1e-5, atol=0)


def test_a_filter_in_the_middle_of_others_goes_first() -> None:
    network = Plain()
    with torch.no_grad():
        network.hidden.weight[3] = network.hidden.weight.mean(0)
    assert groups_of(network, "geometric_median")["hidden"].scores.argmin() == 3


def test_random_scores_depend_on_the_seed_alone(plain: Plain) -> None:
    state = torch.get_rng_state()
    first, again, other = (groups_of(plain, "random", seed)["conv2"].scores for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_channels_of_a_group_that_must_go_together_are_averaged() -> None:
    torch.manual_seed(0)
    groups = groups_of(Grouped(), "l2")
    first = groups["first"]
    assert first.parts == 4
    assert torch.equal(first.scores[:6].repeat(4), first.scores)
    assert groups["last"].parts == 1


def test_concatenations_are_mapped() -> None:
    torch.manual_seed(0)
    network = trained(Concatenated())
    assert isinstance(network, Concatenated)
    scores = groups_of(network, "l2")["layers.1"].scores
    with torch.no_grad():
        expected = mean_of(
            network.layers[1].weight.square().sum((1, 2, 3)),  # type: ignore[operator]
            network.norms[2].weight[14:20].square(),  # type: ignore[index]
            network.layers[2].weight.square().sum((0, 2, 3))[14:20],  # type: ignore[operator]
            network.transition.weight.square().sum((0, 2, 3))[14:20],
        )
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "bn_scale", "geometric_median"])
def test_nothing_but_zeros(criterion: str) -> None:
    network = Plain()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert groups_of(network, criterion)["conv2"].scores.tolist() == [0] * 12


def test_relative_scores() -> None:
    assert relative(torch.tensor([1.0, 3.0])).tolist() == [0.5, 1.5]
    assert relative(torch.zeros(2)).tolist() == [0, 0]


def test_scores_that_are_not_finite(plain: Plain) -> None:
    with torch.no_grad():
        plain.conv2.weight[0] = torch.nan
    with pytest.raises(UserError, match="channels of 'conv2' cannot be ranked"):
        groups_of(plain, "l2")
