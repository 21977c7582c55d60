"""RelationalKDLoss against loops, and its behaviour where samples coincide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslens.distillation import Outputs, RelationalKDLoss
from tests.distillation.samples import labels, random
from tests.references import distillation as reference


def value(student: torch.Tensor, teacher: torch.Tensor, distance: float = 25, angle: float = 50) -> torch.Tensor:
    loss = RelationalKDLoss(distance_weight=distance, angle_weight=angle)
    pair = [Outputs(torch.zeros(len(features), 5), {"features": features}) for features in (student, teacher)]
    loss.build(*pair)
    return loss(*pair, labels(len(student)))


@pytest.mark.parametrize(("distance", "angle"), [(25, 50), (1, 0), (0, 1)])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_oracle(distance: float, angle: float, count: int) -> None:
    student, teacher = random(count, 4, seed=1), random(count, 6, seed=2)
    expected = reference.relational(student, teacher, distance, angle)
    assert float(value(student, teacher, distance, angle)) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert float(value(student.float(), teacher.float(), distance, angle)) == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )


def test_oracle_with_coinciding_samples() -> None:
    student, teacher = random(5, 4, seed=1), random(5, 6, seed=2)
    student[3] = student[0]
    teacher[4] = teacher[1]
    assert float(value(student, teacher)) == pytest.approx(reference.relational(student, teacher, 25, 50), rel=1e-12)


def test_closed_form() -> None:
    # Right angle against straight line: distances (1, 1, √2)·3/(2+√2) against (1, 1, 2)·3/4.
    student = torch.tensor([[0.0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    teacher = torch.tensor([[0.0], [1], [-1]], dtype=torch.float64)
    ours, theirs = 3 / (2 + 2**0.5), 3 / 4
    squares = 2 * (ours - theirs) ** 2 + (ours * 2**0.5 - theirs * 2) ** 2
    assert float(value(student, teacher, 1, 0)) == pytest.approx(2 * squares / 2 / 9, rel=1e-12)
    # cosines 0, √½, √½ against -1, 1, 1, each twice among 27 triplets
    squares = 1 + 2 * (1 - 0.5**0.5) ** 2
    assert float(value(student, teacher, 0, 1)) == pytest.approx(2 * squares / 2 / 27, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(2, 6), scale=st.floats(1e-2, 1e3), shift=st.floats(-10, 10))
def test_rotation_scale_and_shift_do_not_matter(seed: int, count: int, scale: float, shift: float) -> None:
    student, teacher = random(count, 3, seed=seed), random(count, 5, seed=seed + 1)
    rotation, _ = torch.linalg.qr(random(3, 3, seed=seed + 2))
    here = float(value(student, teacher))
    assert here >= 0
    assert float(value(scale * student @ rotation + shift, teacher)) == pytest.approx(here, rel=1e-6, abs=1e-9)
    assert float(value(scale * student @ rotation + shift, student)) == pytest.approx(0, abs=1e-12)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert float(value(student[order], teacher[order])) == pytest.approx(here, rel=1e-9, abs=1e-12)


def test_gradient() -> None:
    student, teacher = random(4, 3, seed=1).requires_grad_(), random(4, 5, seed=2)
    assert torch.autograd.gradcheck(lambda features: value(features, teacher), (student,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_samples_have_finite_moderate_gradients(dtype: torch.dtype) -> None:
    student = random(5, 4, seed=1, dtype=dtype)
    student[3] = student[0]
    student.requires_grad_()
    value(student, random(5, 6, seed=2, dtype=dtype)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e3


def test_coinciding_samples_have_no_angle_to_learn() -> None:
    student = torch.tensor([[1.0, 2], [1, 2], [3, 0]], requires_grad=True)
    value(student, random(3, 4, seed=2, dtype=torch.float32), distance=0).backward()
    torch.testing.assert_close(student.grad, torch.zeros(3, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (1, 3)])
def test_all_samples_coinciding(shape: tuple[int, int]) -> None:
    student = torch.ones(shape, requires_grad=True)
    loss = value(student, random(*shape, seed=2, dtype=torch.float32))
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert (student.grad == 0).all()
    assert float(value(student, torch.ones(shape)).detach()) == 0


def test_batch_of_one_is_zero() -> None:
    assert float(value(random(1, 4, seed=1), random(1, 6, seed=2))) == 0


def test_large_features_stay_finite() -> None:
    student = (1e4 * random(4, 3, seed=1, dtype=torch.float32)).requires_grad_()
    loss = value(student, 1e4 * random(4, 3, seed=2, dtype=torch.float32))
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_maps_are_flattened() -> None:
    student, teacher = random(4, 3, 2, 2, seed=1), random(4, 5, seed=2)
    assert value(student, teacher) == value(student.flatten(1), teacher)


def test_rejects_bad_weights() -> None:
    with pytest.raises(ValueError, match="RelationalKDLoss: distance_weight is"):
        RelationalKDLoss(distance_weight=-1)
    with pytest.raises(ValueError, match="RelationalKDLoss: angle_weight is"):
        RelationalKDLoss(angle_weight=float("nan"))
