"""LogitKDLoss against the textbook formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from compresslens.distillation import LogitKDLoss, Outputs
from tests.distillation.samples import labels, random
from tests.references import distillation as reference


def value(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 4.0) -> torch.Tensor:
    return LogitKDLoss(temperature)(Outputs(student), Outputs(teacher), labels(len(student)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_oracle(temperature: float) -> None:
    student, teacher = random(6, 5, seed=1, scale=3), random(6, 5, seed=2, scale=3)
    expected = reference.logit_kd(student, teacher, temperature)
    assert float(value(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(value(student.float(), teacher.float(), temperature)) == pytest.approx(expected, rel=1e-4)


def test_closed_forms() -> None:
    logits = random(4, 5)
    assert float(value(logits, logits)) == 0
    # teacher (1 - e, e), student uniform: log 2 minus the teacher's entropy
    teacher = torch.tensor([[math.log(0.9), math.log(0.1)]], dtype=torch.float64)
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    uniform = torch.zeros(1, 2, dtype=torch.float64)
    assert float(value(uniform, teacher, temperature=1)) == pytest.approx(math.log(2) - entropy, rel=1e-12)


def test_sure_teacher_gives_cross_entropy() -> None:
    student, target = random(4, 5, seed=1), labels(4)
    teacher = F.one_hot(target, 5).double() * 1e4
    expected = F.cross_entropy(student, target)
    assert float(value(student, teacher, temperature=1)) == pytest.approx(float(expected), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    temperature=st.floats(0.5, 20),
    shift=st.floats(-100, 100),
    scale=st.floats(0, 30),
)
def test_properties(seed: int, temperature: float, shift: float, scale: float) -> None:
    student, teacher = random(3, 4, seed=seed, scale=scale), random(3, 4, seed=seed + 1, scale=scale)
    here = float(value(student, teacher, temperature))
    assert here >= -1e-12
    assert float(value(student + shift, teacher - shift, temperature)) == pytest.approx(here, rel=1e-6, abs=1e-9)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    assert float(value(student[:, order], teacher[:, order], temperature)) == pytest.approx(here, rel=1e-9, abs=1e-9)


def test_gradient() -> None:
    student, teacher = random(3, 4, seed=1).requires_grad_(), random(3, 4, seed=2)
    assert torch.autograd.gradcheck(lambda logits: value(logits, teacher), (student,))


def test_gradient_is_the_difference_of_probabilities() -> None:
    student, teacher = random(3, 4, seed=1).requires_grad_(), random(3, 4, seed=2)
    value(student, teacher, temperature=4).backward()
    expected = 4 * ((student / 4).softmax(1) - (teacher / 4).softmax(1)) / 3  # T²·(q - p)/T over the batch
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize("temperature", [0.1, 4.0])
def test_extreme_logits_stay_finite(temperature: float) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, 1e4, -1e4]])
    loss = value(student, teacher, temperature)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    expected = reference_of_extremes(temperature)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def reference_of_extremes(temperature: float) -> float:
    # row 1: all mass of the teacher where the student's log-probability is -2e4/T; row 2: half there, half on a tie
    return temperature**2 * (2e4 / temperature + (0.5 * 2e4 / temperature)) / 2


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_rejects_bad_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature is .* greater than 0"):
        LogitKDLoss(temperature)


def test_ignores_soft_labels() -> None:
    student, teacher = Outputs(random(3, 4, seed=1)), Outputs(random(3, 4, seed=2))
    loss = LogitKDLoss()
    assert loss(student, teacher, torch.full((3, 4), 0.25)) == loss(student, teacher, labels(3))
