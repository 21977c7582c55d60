from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslens.errors import UserError
from compresslens.footprint import count_macs
from compresslens.low_rank import factorize
from compresslens.low_rank.ranks import candidate, cumulative_shares, rank_at
from compresslens.low_rank.selection import decomposition
from tests.low_rank.layers import convolution, full_ranks, options, use_of
from tests.low_rank.networks import SIZE, SmallNetwork
from tests.references import low_rank as reference

METHODS = ["tucker", "spatial_svd", "cp"]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0.01, 0.999))
def test_least_rank_that_keeps_the_energy(values: list[float], energy: float) -> None:
    singular = np.array(sorted(values, reverse=True))
    shares = cumulative_shares(torch.tensor(singular))
    chosen = rank_at(shares, energy)
    total = (singular**2).sum()
    assert (singular[:chosen] ** 2).sum() >= energy * total - 1e-9
    assert chosen == 1 or (singular[: chosen - 1] ** 2).sum() <= energy * total + 1e-9


def test_rank_at_the_ends() -> None:
    shares = cumulative_shares(torch.tensor([2.0, 1.0, 1.0]))
    assert shares == pytest.approx([4 / 6, 5 / 6, 1])
    assert [rank_at(shares, energy) for energy in (0.0, 0.5, 0.7, 0.9, 1.0)] == [1, 1, 2, 3, 3]
    assert rank_at(cumulative_shares(torch.zeros(3)), 0.5) == 1


@pytest.mark.parametrize("method", METHODS)
def test_ranks_are_those_of_the_reference(method: str) -> None:
    layer = convolution(9, 6, 3, 3)
    kernel = reference.array(layer.weight)
    spectra = {
        "tucker": [reference.singular_values(reference.unfold(kernel, [mode])) for mode in (0, 1)],
        "spatial_svd": [reference.singular_values(reference.unfold(kernel, [1, 2]))],
        "cp": [np.array([length for length, _ in reference.orthogonal_terms(kernel)])],
    }[method]
    one = candidate(layer, decomposition(method), use_of(nn.Sequential(convolution(6, 3, 1, 1), layer), layer, 8))
    for energy in (0.3, 0.6, 0.9, 0.99):
        assert one.ranks_at(energy) == [reference.rank(values, energy) for values in spectra]


@pytest.mark.parametrize("method", METHODS)
@given(st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)), options(), st.data())
@settings(deadline=None, max_examples=30)
def test_operations_are_those_of_the_new_layers(
    method: str, shape: tuple[int, ...], chosen: dict[str, Any], data: st.DataObject
) -> None:
    layer = convolution(shape[0], 3, *shape[1:], **chosen)
    method = "svd" if shape[1:] == (1, 1) else method
    functions = decomposition(method)
    ranks = functions.fit_ranks(layer, [data.draw(st.integers(1, most)) for most in full_ranks(layer, method)])
    predicted = functions.macs(layer, ranks, use_of(layer, layer, 9))
    assert predicted == count_macs(functions.structure(layer, ranks), 9)
    one = candidate(layer, functions, use_of(layer, layer, 9))
    assert one.present == count_macs(layer, 9)
    assert one.macs(ranks) == min(predicted, one.present)


def test_operations_of_a_layer_that_runs_twice() -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    network = nn.Sequential(layer, nn.MaxPool2d(2), layer)
    use = use_of(network, layer, 8)
    assert (use.inputs, use.between, use.outputs) == (64 + 16,) * 3


# Targets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.35, 0.5, 0.75, 0.95])
def test_a_target_is_met_within_one_percent(method: Any, share: float) -> None:
    network = SmallNetwork()
    before = count_macs(network, SIZE)
    factorize(network, method, macs=share, image_size=SIZE)
    assert count_macs(network, SIZE) == pytest.approx(share * before, rel=0.01)


def test_a_number_is_a_target_like_a_share() -> None:
    networks = [SmallNetwork(), SmallNetwork()]
    before = count_macs(networks[0], SIZE)
    for network, macs in zip(networks, (0.5, round(0.5 * before)), strict=True):
        factorize(network, macs=macs, image_size=SIZE)
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_equal_layers_do_not_all_change_at_once() -> None:
    """Six layers with the same flat spectrum: a common energy alone could only choose among a few totals."""
    layers = [nn.Conv2d(3, 16, 1), *(nn.Conv2d(16, 16, 1) for _ in range(6))]
    for layer in layers[1:]:
        nn.init.eye_(layer.weight.data.view(16, 16))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    before = count_macs(network, 4)
    factorize(network, macs=0.66, image_size=4)
    assert count_macs(network, 4) == pytest.approx(0.66 * before, rel=0.01)
    ranks = [layer[0].out_channels for layer in network if isinstance(layer, nn.Sequential)]
    assert max(ranks) - min(ranks) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_target_out_of_reach_names_the_least(method: Any) -> None:
    before = count_macs(SmallNetwork(), SIZE)
    with pytest.raises(UserError, match=r"cannot be met: the fewest that can be reached are [\d,]+ \(") as error:
        factorize(SmallNetwork(), method, macs=0.01, image_size=SIZE)
    assert f"the target of {round(0.01 * before):,} (1.0%) multiply-accumulates" in str(error.value)
    least = re.search(r"reached are ([\d,]+)", str(error.value))
    assert least is not None
    network = SmallNetwork()
    factorize(network, method, macs=int(least[1].replace(",", "")), image_size=SIZE)
    assert count_macs(network, SIZE) == int(least[1].replace(",", ""))


def test_a_target_between_the_steps_names_both() -> None:
    def network() -> nn.Sequential:
        layers = [convolution(3, 3, 1, 1), convolution(4, 3, 3, 3, padding=1)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2).double())

    before = count_macs(network(), 8)
    with pytest.raises(UserError, match="the nearest that can be reached are") as error:
        factorize(network(), "spatial_svd", macs=0.53, image_size=8)
    found = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) \(", str(error.value))]
    target, below, above = found
    assert below < 0.99 * target
    assert above > 1.01 * target
    for macs in (below, above):
        reached = network()
        factorize(reached, "spatial_svd", macs=macs / before, image_size=8)
        assert count_macs(reached, 8) == macs


def test_more_than_there_are() -> None:
    with pytest.raises(UserError, match=r"macs is 1,000,000,000, but the network needs no more than [\d,]+: ask for"):
        factorize(SmallNetwork(), macs=1e9, image_size=SIZE)
