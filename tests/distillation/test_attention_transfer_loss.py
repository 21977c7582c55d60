"""AttentionTransferLoss against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslens.distillation import AttentionTransferLoss, Outputs
from compresslens.distillation.attention_transfer_loss import attention
from tests.distillation.samples import labels, random
from tests.references import distillation as reference


def value(student: torch.Tensor, teacher: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    loss = AttentionTransferLoss(["layer"], power=power)
    pair = [Outputs(torch.zeros(len(maps), 5), {"layer": maps}) for maps in (student, teacher)]
    loss.build(*pair)
    return loss(*pair, labels(len(student)))


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((2, 3, 4, 4), (2, 3, 4, 4)), ((2, 3, 6, 6), (2, 7, 3, 3)), ((2, 2, 3, 5), (2, 4, 7, 2))],
)
def test_oracle(power: float, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = random(*ours, seed=1), random(*theirs, seed=2)
    expected = reference.attention_transfer(student, teacher, power)
    assert float(value(student, teacher, power)) == pytest.approx(expected, rel=1e-12)


def test_closed_form() -> None:
    # attention on disjoint positions: unit maps at a right angle, squared distance 2 over 4 positions
    student, teacher = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    student[0, 1, 0, 0], teacher[0, 2, 1, 1] = 5, -7
    assert float(value(student, teacher)) == pytest.approx(2 / 4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), scale=st.floats(1e-2, 1e3), power=st.floats(1, 4))
def test_scale_sign_and_channel_order_do_not_matter(seed: int, scale: float, power: float) -> None:
    student, teacher = random(2, 3, 3, 2, seed=seed), random(2, 4, 3, 2, seed=seed + 1)
    here = float(value(student, teacher, power))
    assert float(value(-scale * student[:, [2, 0, 1]], teacher, power)) == pytest.approx(here, rel=1e-9)
    assert 0 <= here <= 2 / 6
    assert float(value(student, scale * student, power)) == pytest.approx(0, abs=1e-20)


def test_gradient() -> None:
    student, teacher = random(2, 3, 4, 4, seed=1).requires_grad_(), random(2, 2, 3, 3, seed=2)
    assert torch.autograd.gradcheck(lambda maps: value(maps, teacher), (student,))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e4])
def test_dead_and_extreme_activations_stay_finite(scale: float) -> None:
    student = (random(2, 3, 4, 4, seed=1, dtype=torch.float32) * scale).requires_grad_()
    loss = value(student, random(2, 3, 4, 4, seed=2, dtype=torch.float32))
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_attention_is_a_unit_vector() -> None:
    maps = random(3, 4, 5, 2)
    torch.testing.assert_close(attention(maps).norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert (attention(maps) >= 0).all()


@pytest.mark.parametrize("power", [0.5, 0.0, -1.0, float("nan")])
def test_rejects_bad_power(power: float) -> None:
    with pytest.raises(ValueError, match="AttentionTransferLoss: power is"):
        AttentionTransferLoss(power=power)
