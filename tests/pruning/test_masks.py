from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compresslens.pruning.masks import (
    MaskedWeights,
    Masks,
    fits_pattern,
    global_masks,
    layer_masks,
    nonzero_masks,
    pack,
    pattern_masks,
    pruned_cost,
    unpack,
)
from tests.references import pruning as reference


def everything(scores: dict[str, Tensor]) -> Masks:
    return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}


def random_scores(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


# Global ---------------------------------------------------------------------------------------------------------------

LAYER = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=8)


@settings(deadline=None)
@given(st.lists(LAYER, min_size=1, max_size=3), st.lists(st.integers(1, 4), min_size=3, max_size=3), st.data())
def test_global_masks_are_those_of_the_reference(layers: Any, prices: list[int], data: Any) -> None:
    scores = {str(number): [float(score) for score, _ in layer] for number, layer in enumerate(layers)}
    alive = {str(number): [life for _, life in layer] for number, layer in enumerate(layers)}
    costs = {name: prices[int(name)] for name in scores}
    dead = sum(costs[name] * values.count(False) for name, values in alive.items())
    amount = data.draw(st.integers(dead, sum(costs[name] * len(values) for name, values in alive.items())))
    masks = global_masks(
        {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()},
        {name: torch.tensor(values) for name, values in alive.items()},
        costs,
        amount,
    )
    expected = reference.global_pruning(scores, alive, costs, amount)
    assert {name: mask.tolist() for name, mask in masks.items()} == expected


@pytest.mark.parametrize("number", [0, 1, 7, 99, 100])
def test_exactly_as_many_as_asked_for(number: int) -> None:
    scores = {"one": torch.zeros(4, 10), "two": torch.ones(60)}
    masks = global_masks(scores, everything(scores), {"one": 1, "two": 1}, number)
    assert pruned_cost(masks, {"one": 1, "two": 1}) == number
    assert masks["one"].shape == (4, 10)
    gone = ~torch.cat([masks["one"].flatten(), masks["two"]])
    assert gone[:number].all(), "the first of equals"
    assert not gone[number:].any()


def test_costs_decide_between_equal_scores() -> None:
    scores = {"cheap": torch.full((10,), 1.0), "dear": torch.full((10,), 1.0)}
    masks = global_masks(scores, everything(scores), {"cheap": 1, "dear": 9}, 45)
    assert pruned_cost(masks, {"cheap": 1, "dear": 9}) == 45
    assert masks["cheap"].all(), "they would save little"


# Per layer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0, 33, 100, 165])
def test_every_layer_loses_the_same_share(amount: int) -> None:
    scores = random_scores(one=(30,), two=(5, 27))
    masks = layer_masks(scores, everything(scores), {"one": 1, "two": 1}, amount)
    lost = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert sum(lost.values()) == amount
    assert abs(lost["one"] - amount * 30 / 165) < 1
    for name, mask in masks.items():
        if 0 < lost[name] < mask.numel():
            assert scores[name][~mask].max() <= scores[name][mask].min()


def test_a_layer_that_has_lost_more_before_stays_so() -> None:
    scores = random_scores(one=(100,), two=(100,))
    alive = everything(scores)
    alive["one"][:80] = False
    masks = layer_masks(scores, alive, {"one": 1, "two": 1}, 120)
    assert torch.equal(masks["one"], alive["one"])
    assert int((~masks["two"]).sum()) == 40


def test_shares_with_costs() -> None:
    scores = random_scores(one=(100,), two=(100,))
    costs = {"one": 4, "two": 1}
    masks = layer_masks(scores, everything(scores), costs, 250)
    assert [int((~mask).sum()) for mask in masks.values()] == [50, 50]


# Patterns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stay", "of"), [(2, 4), (1, 4), (1, 2), (3, 8)])
@pytest.mark.parametrize("shape", [(3, 8, 3, 2), (5, 16)])
def test_patterns_are_the_best_choices(stay: int, of: int, shape: tuple[int, ...]) -> None:
    scores = random_scores(layer=shape)
    mask = pattern_masks(scores, everything(scores), stay, of)["layer"]
    as_kernels = scores["layer"].reshape(*shape, *(1,) * (4 - len(shape)))
    rows = reference.rows_along_inputs(as_kernels.tolist(), of)
    got = reference.rows_along_inputs(mask.reshape(as_kernels.shape).tolist(), of)
    assert got == reference.pattern(rows, stay)
    assert mask.shape == shape
    assert mask.double().mean() == stay / of


def test_patterns_keep_what_was_pruned_and_break_ties_by_place() -> None:
    scores = {"layer": torch.ones(2, 4)}
    alive = {"layer": torch.tensor([[True, True, True, True], [True, False, False, False]])}
    mask = pattern_masks(scores, alive, 2, 4)["layer"]
    assert mask.tolist() == [[False, False, True, True], [True, False, False, False]]


def test_what_fits_a_pattern() -> None:
    assert fits_pattern(torch.zeros(5, 8, 3, 3), 4)
    assert not fits_pattern(torch.zeros(8, 3, 3, 3), 4)
    assert not fits_pattern(torch.zeros(8, 1, 3, 3), 4), "depthwise"


# What was there before ------------------------------------------------------------------------------------------------


def test_zeros_of_before() -> None:
    weights = {"pruned": torch.tensor([[0.0, -1.0], [-0.0, 2.0]]), "new": torch.zeros(3), "dense": torch.ones(2)}
    masks = nonzero_masks(weights)
    assert masks["pruned"].tolist() == [[False, True], [False, True]]
    assert masks["new"].all(), "initialized with zeros, not pruned"
    assert masks["dense"].all()


@pytest.mark.parametrize("choose", [global_masks, layer_masks])
def test_what_is_pruned_stays_pruned(choose: Any) -> None:
    scores = random_scores(one=(40,), two=(60,))
    costs, masks = {"one": 1, "two": 1}, everything(scores)
    for step in range(1, 11):
        new = choose(random_scores(two=(60,), one=(40,)) if step % 2 else scores, masks, costs, 9 * step)
        assert pruned_cost(new, costs) == 9 * step
        assert all(not (new[name] & ~masks[name]).any() for name in masks)
        masks = new


# Bits -----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=40))
def test_bits(mask: list[bool]) -> None:
    packed = pack(torch.tensor(mask, dtype=torch.bool))
    assert packed["bits"].tolist() == reference.bits(mask)
    assert unpack(packed).tolist() == mask


def test_bits_do_not_depend_on_the_memory_format() -> None:
    mask = torch.rand(3, 5, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.3
    one, other = pack(mask), pack(mask.contiguous(memory_format=torch.channels_last))
    assert torch.equal(one["bits"], other["bits"])
    assert torch.equal(unpack(other), mask)
    assert one["bits"].numel() == -(-mask.numel() // 8)


# On weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weights_become_exactly_zero_in_place(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    weight = torch.nn.Parameter(torch.randn(4, 6, 3, 3).to(dtype).contiguous(memory_format=memory_format))
    mask = torch.rand(4, 6, 3, 3) < 0.4
    with torch.no_grad():
        weight[0, 0] = torch.nan
        weight[0, 1] = -torch.inf
    before, place = weight.detach().clone(), weight.data_ptr()
    MaskedWeights({"layer": weight}, {"layer": mask}).apply()
    assert weight.data_ptr() == place
    pruned = weight.detach()[~mask]
    assert pruned.eq(0).all()
    assert not pruned.signbit().any(), "no minus zeros, which would not compress"
    assert torch.equal(weight.detach()[mask].nan_to_num(), before[mask].nan_to_num())
    assert weight.stride() == before.stride()


def test_masks_follow_the_weight_not_its_values() -> None:
    weight = torch.ones(4)
    masked = MaskedWeights({"layer": weight}, {"layer": torch.tensor([True, False, True, False])})
    for _ in range(2):
        weight += 1
        masked.apply()
    assert weight.tolist() == [3, 0, 3, 0]
