"""DecoupledKDLoss against loops, and the identity that ties it to LogitKDLoss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslens.distillation import DecoupledKDLoss, LogitKDLoss, Outputs
from compresslens.distillation.decoupled_kd_loss import decoupled_kl
from tests.distillation.samples import labels, random
from tests.references import distillation as reference


def value(student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, **settings: float) -> torch.Tensor:
    return DecoupledKDLoss(**settings)(Outputs(student), Outputs(teacher), target)


def hinton(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    return float(LogitKDLoss(temperature)(Outputs(student), Outputs(teacher), labels(len(student))))


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(4, 1, 8), (1, 1, 1), (2, 0, 3), (2, 3, 0)])
def test_oracle(temperature: float, alpha: float, beta: float) -> None:
    student, teacher, target = random(6, 5, seed=1, scale=3), random(6, 5, seed=2, scale=3), labels(6)
    expected = reference.decoupled_kd(student, teacher, target, temperature, alpha, beta)
    parameters = {"temperature": temperature, "alpha": alpha, "beta": beta}
    assert float(value(student, teacher, target, **parameters)) == pytest.approx(expected, rel=1e-12)
    assert float(value(student.float(), teacher.float(), target, **parameters)) == pytest.approx(expected, rel=1e-4)


def test_defaults_are_the_papers() -> None:
    loss = DecoupledKDLoss()
    assert (loss.temperature, loss.alpha, loss.beta, loss.weight) == (4, 1, 8, 1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), temperature=st.floats(0.5, 10), scale=st.floats(0, 10), classes=st.integers(2, 6))
def test_weighing_by_the_teachers_doubt_is_hintons_loss(
    seed: int, temperature: float, scale: float, classes: int
) -> None:
    student = random(3, classes, seed=seed, scale=scale)
    teacher = random(3, classes, seed=seed + 1, scale=scale)
    target = torch.arange(3) % classes
    target_class, other_classes, doubt = decoupled_kl(student / temperature, teacher / temperature, target[:, None])
    coupled = temperature**2 * float((target_class + doubt * other_classes).mean())
    assert coupled == pytest.approx(hinton(student, teacher, temperature), rel=1e-9, abs=1e-12)
    assert coupled == pytest.approx(
        reference.decoupled_kd(student, teacher, target, temperature, 1, None), rel=1e-6, abs=1e-9
    )
    assert (target_class > -1e-12).all()
    assert (other_classes > -1e-12).all()


def test_equal_doubt_makes_beta_a_constant() -> None:
    # every sample's teacher has the same p_t, so one beta suffices and the loss itself equals Hinton's
    row = random(1, 5, seed=2)
    teacher, student = row.expand(4, 5), random(4, 5, seed=1)
    target = torch.full((4,), 2)
    doubt = 1 - float((row / 3).softmax(1)[0, 2])
    assert float(value(student, teacher, target, temperature=3, alpha=1, beta=doubt)) == pytest.approx(
        hinton(student, teacher, 3), rel=1e-12
    )


def test_two_classes_have_no_others_to_rank() -> None:
    student, teacher, target = random(4, 2, seed=1), random(4, 2, seed=2), torch.tensor([0, 1, 1, 0])
    assert float(value(student, teacher, target, temperature=2, alpha=1, beta=8)) == pytest.approx(
        hinton(student, teacher, 2), rel=1e-12
    )


def test_shifting_logits_changes_nothing() -> None:
    student, teacher, target = random(4, 5, seed=1), random(4, 5, seed=2), labels(4)
    torch.testing.assert_close(value(student + 50, teacher - 50, target), value(student, teacher, target))


def test_target_class_only_sees_the_labels_probability() -> None:
    student, teacher, target = random(1, 5, seed=1), random(1, 5, seed=2), torch.tensor([4])
    swapped = student[:, [1, 0, 2, 3, 4]]
    torch.testing.assert_close(value(swapped, teacher, target, beta=0), value(student, teacher, target, beta=0))
    raised = student + torch.tensor([0.0, 0, 0, 0, 3])
    torch.testing.assert_close(value(raised, teacher, target, alpha=0), value(student, teacher, target, alpha=0))


def test_gradient() -> None:
    student, teacher, target = random(3, 4, seed=1).requires_grad_(), random(3, 4, seed=2), labels(3) % 4
    assert torch.autograd.gradcheck(lambda logits: value(logits, teacher, target), (student,))


def test_extreme_logits_stay_finite_and_exact() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, 1e4, -1e4]])
    loss = value(student, teacher, torch.tensor([0, 1]))
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    # row 1, label 0: TCKD 1e4/T, NCKD 1e4/T; row 2, label 1: TCKD 0 (p = q = 1/2), NCKD 2e4/T
    assert float(loss.detach()) == pytest.approx(16 * (1e4 / 4 + 8 * 1e4 / 4 + 8 * 2e4 / 4) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "bad"), [("temperature", 0.0), ("temperature", float("inf")), ("alpha", -1.0), ("beta", float("nan"))]
)
def test_rejects_bad_parameters(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"DecoupledKDLoss: {name} is"):
        DecoupledKDLoss(**{name: bad})


def test_rejects_soft_labels_and_single_class() -> None:
    logits = random(3, 4)
    with pytest.raises(ValueError, match=r"needs class indices.*mixup"):
        value(logits, logits, torch.full((3, 4), 0.25))
    with pytest.raises(ValueError, match="two or more classes"):
        DecoupledKDLoss().build(Outputs(torch.zeros(2, 1)), Outputs(torch.zeros(2, 1)))
