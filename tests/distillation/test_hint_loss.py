"""HintLoss against loops, and its adapters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslens.distillation import HintLoss, Outputs
from tests.distillation.samples import built, labels, outputs, random
from tests.references import distillation as reference

Shape = tuple[int, ...]


def single(maps: torch.Tensor) -> Outputs:
    return Outputs(torch.zeros(len(maps), 5, dtype=maps.dtype), {"layer3": maps})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((2, 3, 4, 4), (2, 3, 4, 4)),
        ((2, 3, 4, 4), (2, 5, 4, 4)),
        ((2, 5, 6, 6), (2, 3, 3, 3)),
        ((2, 3, 3, 3), (2, 5, 7, 7)),
        ((2, 3, 5, 2), (2, 4, 3, 6)),
        ((1, 3, 1, 1), (1, 4, 5, 5)),
    ],
)
def test_oracle(ours: Shape, theirs: Shape) -> None:
    student, teacher = single(random(*ours, seed=1)), single(random(*theirs, seed=2))
    loss = HintLoss()
    loss.build(student, teacher)
    weight, bias = None, None
    if ours[1] != theirs[1]:
        adapter = loss.adapters[0]
        assert isinstance(adapter, nn.Conv2d)
        assert adapter.weight.shape == (theirs[1], ours[1], 1, 1)
        weight, bias = adapter.weight[:, :, 0, 0], adapter.bias
    else:
        assert isinstance(loss.adapters[0], nn.Identity)
    expected = reference.hint(student.features["layer3"], teacher.features["layer3"], weight, bias)
    assert float(loss(student, teacher, labels(ours[0])).detach()) == pytest.approx(expected, rel=1e-12)


def test_vectors() -> None:
    student, teacher = (
        outputs(channels=4, seed=1, dtype=torch.float64),
        outputs(channels=6, seed=2, dtype=torch.float64),
    )
    loss = HintLoss(["features"])
    loss.build(student, teacher)
    adapter = loss.adapters[0]
    assert isinstance(adapter, nn.Conv2d)
    linear = nn.functional.linear(student.features["features"], adapter.weight[:, :, 0, 0], adapter.bias)
    expected = (linear - teacher.features["features"]).square().mean()
    torch.testing.assert_close(loss(student, teacher, labels(3)), expected)


def test_adapters_only_where_channels_differ() -> None:
    student, teacher = outputs(channels=4), outputs(channels=4, size=(2, 2))
    teacher.features["layer3"] = random(3, 6, 2, 2, dtype=torch.float32)
    loss = HintLoss(["layer2", "layer3"])
    loss.build(student, teacher)
    assert [type(adapter) for adapter in loss.adapters] == [nn.Identity, nn.Conv2d]


def test_building_again_keeps_what_was_learned() -> None:
    student, teacher = outputs(channels=4), outputs(channels=6)
    loss = built(HintLoss, student, teacher)
    assert isinstance(loss, HintLoss)
    before = loss.adapters[0]
    loss.build(student, teacher)
    assert loss.adapters[0] is before
    loss.build(student, outputs(channels=7))
    assert loss.adapters[0] is not before


def test_adapter_learns() -> None:
    student, teacher = outputs(channels=4, requires_grad=False, seed=1), outputs(channels=3, requires_grad=False)
    mix = random(3, 4, seed=9, dtype=torch.float32)
    teacher.features["layer3"] = torch.einsum("nchw,dc->ndhw", student.features["layer3"], mix)
    torch.manual_seed(0)
    loss = built(HintLoss, student, teacher)
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(student, teacher, labels(3))
        value.backward()
        return value

    start = float(loss(student, teacher, labels(3)).detach())
    optimizer.step(closure)
    assert float(loss(student, teacher, labels(3)).detach()) < 1e-3 * start


def test_gradient() -> None:
    maps, target = random(2, 3, 4, 4, seed=1).requires_grad_(), single(random(2, 5, 3, 2, seed=2))
    loss = HintLoss()
    loss.build(single(maps), target)
    assert torch.autograd.gradcheck(lambda student: loss(single(student), target, labels(2)), (maps,))


def test_adapter_in_pure_bfloat16_still_computes_in_float32() -> None:
    student, teacher = outputs(channels=4, seed=1), outputs(channels=6, seed=2)
    loss = built(HintLoss, student, teacher)
    exact = loss(student, teacher, labels(3))
    value = loss.to(torch.bfloat16)(student, teacher, labels(3))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.02, atol=0)


def test_rejects_use_before_build() -> None:
    with pytest.raises(ValueError, match=r"call build\(\)"):
        HintLoss()(outputs(), outputs(), labels(3))


def test_large_activations_stay_finite() -> None:
    student, teacher = single(torch.full((2, 3, 2, 2), 1e4)), single(torch.full((2, 3, 2, 2), -1e4))
    assert float(built(HintLoss, student, teacher)(student, teacher, labels(2))) == pytest.approx(4e8)
