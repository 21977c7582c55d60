from __future__ import annotations

import pytest
import torch

from compresslens.errors import UserError
from compresslens.pruning.criteria import CHANNEL_CRITERIA, WEIGHT_CRITERIA, check_criterion, lamp, weight_scores
from tests.references import pruning as reference

WEIGHTS = {"one": torch.tensor([[3.0, -4.0], [0.5, 0.0]]), "two": torch.tensor([-2.0])}
GRADIENTS = {"one": torch.tensor([[1.0, 0.5], [-6.0, 9.0]]), "two": torch.tensor([0.0])}


@pytest.mark.parametrize(
    ("criterion", "one", "two"),
    [
        ("l1", [[3.0, 4.0], [0.5, 0.0]], [2.0]),
        ("l2", [[9.0, 16.0], [0.25, 0.0]], [4.0]),
        ("taylor", [[9.0, 4.0], [9.0, 0.0]], [0.0]),
        ("lamp", [[9 / 25, 1.0], [0.25 / 25.25, 0.0]], [1.0]),
    ],
)
def test_values(criterion: str, one: list[list[float]], two: list[float]) -> None:
    scores = weight_scores(criterion, WEIGHTS, GRADIENTS)
    assert scores["one"].tolist() == pytest.approx([pytest.approx(row) for row in one])
    assert scores["two"].tolist() == pytest.approx(two)
    assert all(score.dtype == torch.float64 for score in scores.values())


def test_lamp_is_the_papers() -> None:
    squares = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)).double().square().round(decimals=1)
    assert len(squares.unique()) < squares.numel(), "some are equal"
    expected = reference.lamp(squares.flatten().tolist())
    assert lamp(squares).flatten().tolist() == pytest.approx(expected, rel=1e-12)
    assert lamp(squares).max() == 1


def test_lamp_of_nothing_but_zeros() -> None:
    assert lamp(torch.zeros(4)).tolist() == [0, 0, 0, 0]


def test_lamp_does_not_lose_small_weights_beside_large_ones() -> None:
    scores = weight_scores("lamp", {"layer": torch.tensor([1e-20, 2e-20, 1e4])})["layer"]
    assert 0 < scores[0] < scores[1] < scores[2]


def test_random_scores_depend_on_the_seed_alone() -> None:
    torch.manual_seed(3)
    first = weight_scores("random", WEIGHTS, seed=5)
    state = torch.get_rng_state()
    again = weight_scores("random", {name: -weight for name, weight in WEIGHTS.items()}, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in WEIGHTS)
    assert not torch.equal(first["one"], weight_scores("random", WEIGHTS, seed=6)["one"])
    assert not torch.equal(first["one"].flatten()[:1], first["two"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_finite(value: float) -> None:
    with pytest.raises(UserError, match="weights of 'layer2' cannot be ranked: their l2 score is not finite"):
        weight_scores("l2", {"layer1": torch.ones(2), "layer2": torch.tensor([1.0, value])})


@pytest.mark.parametrize(
    ("criterion", "channels", "message"),
    [
        ("bn_scale", False, "no criterion 'bn_scale' for single weights; there are l1, l2, taylor, lamp, random"),
        ("geometric_median", False, "for single weights"),
        ("l3", True, "no criterion 'l3' for channels; there are .*bn_scale, geometric_median .nearest: l"),
        ("tailor", False, "nearest: taylor"),
    ],
)
def test_criteria_that_there_are_not(criterion: str, channels: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_criterion(criterion, channels)


def refused(criterion: str, channels: bool) -> bool:
    try:
        check_criterion(criterion, channels)
    except UserError:
        return True
    return False


def test_criteria_that_there_are() -> None:
    every = {*WEIGHT_CRITERIA, *CHANNEL_CRITERIA}
    assert {criterion for criterion in every if not refused(criterion, channels=False)} == set(WEIGHT_CRITERIA)
    assert {criterion for criterion in every if not refused(criterion, channels=True)} == set(CHANNEL_CRITERIA)
