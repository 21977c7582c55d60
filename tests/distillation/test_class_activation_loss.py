"""ClassActivationLoss against loops with numeric gradients, and its use with a frozen teacher."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compresslens.distillation import ClassActivationLoss, Outputs
from compresslens.distillation.class_activation_loss import resize_maps
from compresslens.networks import feature_taps
from tests.distillation.samples import labels, outputs, random
from tests.references import distillation as reference


class Head(nn.Module):
    """Curved on purpose: convolution, tanh, global mean, linear."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        self.mix = random(6, channels, 3, 3, seed=seed, scale=0.3)
        self.out = random(6, 5, seed=seed + 1)

    def forward(self, maps: Tensor) -> Tensor:
        return nn.functional.conv2d(maps, self.mix, padding=1).tanh().mean((2, 3)) @ self.out


def tapped(head: nn.Module, maps: Tensor) -> Outputs:
    """As a network under feature taps: the logits hang on the layer."""
    maps = maps if maps.requires_grad else maps.clone().requires_grad_()
    return Outputs(head(maps), {"layer4": maps})


def slopes(head: nn.Module, maps: Tensor, target: Tensor) -> Tensor:
    """Numeric gradient of each sample's label logit."""
    rows = []
    for sample, label in zip(maps, target, strict=True):
        rows.append(reference.numeric_gradient(lambda m, k=label: head(m[None])[0, k], sample))  # type: ignore[misc]
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((3, 3, 4, 4), (3, 3, 4, 4)),
        ((3, 2, 2, 2), (3, 4, 5, 5)),
        ((3, 4, 5, 4), (3, 2, 2, 3)),
        ((3, 2, 4, 2), (3, 3, 3, 5)),
        ((1, 2, 3, 3), (1, 2, 3, 3)),
    ],
)
def test_oracle(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student_head, teacher_head = Head(ours[1], seed=3), Head(theirs[1], seed=5)
    student, teacher, target = random(*ours, seed=1), random(*theirs, seed=2), labels(ours[0])
    value = ClassActivationLoss()(tapped(student_head, student), tapped(teacher_head, teacher), target)
    expected = reference.class_activation(
        student, slopes(student_head, student, target), teacher, slopes(teacher_head, teacher, target)
    )
    assert expected > 1e-3
    assert float(value.detach()) == pytest.approx(expected, rel=1e-7)


def pooled_linear(channels: int, seed: int) -> nn.Module:
    """Global mean, then linear: alpha does not depend on the maps, so the loss has an ordinary gradient."""
    linear = nn.Linear(channels, 5, dtype=torch.float64)
    linear.weight.data = random(5, channels, seed=seed)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def test_gradient() -> None:
    head = pooled_linear(3, seed=1)
    teacher, target = tapped(pooled_linear(2, seed=2), random(2, 2, 3, 5, seed=4)), labels(2)
    maps = random(2, 3, 4, 4, seed=3).requires_grad_()
    loss = ClassActivationLoss()
    assert torch.autograd.gradcheck(lambda m: loss(tapped(head, m), teacher, target), (maps,))


def test_no_second_order_terms() -> None:
    """With a curved head, the gradient is that of the loss with alpha held fixed."""
    head, target = Head(3, seed=3), labels(2)
    teacher = tapped(Head(3, seed=5), random(2, 3, 4, 4, seed=2))
    maps = random(2, 3, 4, 4, seed=1).requires_grad_()
    ClassActivationLoss()(tapped(head, maps), teacher, target).backward()
    alpha = slopes(head, maps.detach(), target).mean((2, 3))
    their_alpha = torch.autograd.grad(
        teacher.logits.gather(1, target[:, None]).sum(), teacher.features["layer4"], retain_graph=True
    )[0].mean((2, 3))
    again = maps.detach().clone().requires_grad_()
    ours = torch.einsum("nchw,nc->nhw", again, alpha).relu().flatten(1)
    theirs = torch.einsum("nchw,nc->nhw", teacher.features["layer4"].detach(), their_alpha).relu().flatten(1)
    distance = (nn.functional.normalize(ours, dim=1) - nn.functional.normalize(theirs, dim=1)).square().sum(1).mean()
    distance.backward()
    torch.testing.assert_close(maps.grad, again.grad, rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), scale=st.floats(1e-3, 1e3))
def test_range_and_scale(seed: int, scale: float) -> None:
    student, teacher, target = random(3, 3, 3, 3, seed=seed), random(3, 2, 4, 2, seed=seed + 1), labels(3, seed)
    heads = pooled_linear(3, seed + 2), pooled_linear(2, seed + 3)
    loss = ClassActivationLoss()
    here = float(loss(tapped(heads[0], student), tapped(heads[1], teacher), target).detach())
    assert 0 <= here <= 2
    scaled = loss(tapped(heads[0], scale * student), tapped(heads[1], teacher / scale), target)
    assert float(scaled.detach()) == pytest.approx(here, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_all_negative_maps_count_nothing(dead: str) -> None:
    head, target = pooled_linear(1, seed=1), torch.tensor([0, 0])
    sign = float(head[2].weight[0, 0].sign().detach())  # type: ignore[index, union-attr]
    alive, gone = sign * random(2, 1, 3, 3, seed=2).abs(), -sign * random(2, 1, 3, 3, seed=3).abs()
    maps = (gone if dead != "teacher" else alive).clone().requires_grad_()
    teacher = tapped(head, gone if dead != "student" else alive)
    value = ClassActivationLoss()(tapped(head, maps), teacher, target)
    value.backward()
    assert float(value.detach()) == 0
    assert maps.grad is not None
    assert (maps.grad == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e4])
def test_size_of_the_logits_does_not_matter(scale: float) -> None:
    teacher = tapped(pooled_linear(3, seed=4).float(), random(2, 3, 3, 3, seed=3, dtype=torch.float32))
    results = []
    for factor in (1.0, scale):
        head = pooled_linear(3, seed=1).float()
        head[2].weight.data *= factor  # type: ignore[index, operator, union-attr]
        maps = random(2, 3, 3, 3, seed=2, dtype=torch.float32).requires_grad_()
        value = ClassActivationLoss()(tapped(head, maps), teacher, labels(2))
        value.backward()
        results.append((value.detach(), maps.grad))
    assert 0 < results[0][0] <= 2
    torch.testing.assert_close(results[0], results[1])


def network(channels: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
    return nn.Sequential(trunk, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_with_feature_taps(frozen: bool, autocast: bool) -> None:
    """As in training: the teacher's graph starts at the layer; none of its parameters gets a gradient."""
    student, teacher = network(4, seed=1), network(6, seed=2).eval().requires_grad_(not frozen)
    images, target = random(3, 3, 8, 8, dtype=torch.float32), labels(3)
    loss = ClassActivationLoss(["0"])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        with torch.no_grad(), feature_taps(teacher, ["0"], start_graph=True) as taps:
            theirs = Outputs(teacher(images), taps)
        with feature_taps(student, ["0"]) as taps:
            ours = Outputs(student(images), taps)
        loss.build(ours, theirs)
        matching = loss(ours, theirs, target)
    assert matching.dtype == torch.float32
    assert 0 < float(matching.detach()) <= 2
    (matching + nn.functional.cross_entropy(ours.logits.float(), target)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert theirs.features["0"].grad is None
    gradients = [parameter.grad for parameter in student.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_gradient_descent_moves_the_map_to_the_teachers() -> None:
    head = pooled_linear(2, seed=1)
    teacher, target = tapped(head, random(2, 2, 3, 3, seed=2)), labels(2)
    maps = random(2, 2, 3, 3, seed=3).abs().requires_grad_()
    maps.data *= head[2].weight.sign()[target][..., None, None]  # type: ignore[index, union-attr, operator]
    optimizer = torch.optim.Adam([maps], lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = ClassActivationLoss()(tapped(head, maps), teacher, target)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.1 * values[0]


def test_needs_graphs_on_both_sides() -> None:
    loss, target = ClassActivationLoss(), labels(3)
    assert loss.needs_teacher_gradient
    with torch.no_grad():
        cold = outputs(seed=2, requires_grad=False)
    with pytest.raises(ValueError, match=r"teacher's logits do not depend on its layer 'layer4'.*start_graph=True"):
        loss(outputs(seed=1), cold, target)
    with pytest.raises(ValueError, match="student's logits do not depend"):
        loss(cold, outputs(seed=1), target)
    unrelated = outputs(seed=1)
    unrelated.features["layer4"] = random(3, 4, 4, 4, dtype=torch.float32).requires_grad_()
    with pytest.raises(ValueError, match="student's logits do not depend"):
        loss(unrelated, outputs(seed=1), target)


def test_several_layers_share_one_graph() -> None:
    loss = ClassActivationLoss(["layer3", "layer4"])
    value = loss(outputs(seed=1), outputs(seed=2), labels(3))
    value.backward()
    assert 0 < float(value.detach()) <= 4


def test_rejects_soft_labels() -> None:
    with pytest.raises(ValueError, match="needs class indices"):
        ClassActivationLoss()(outputs(), outputs(), torch.full((3, 5), 0.2))


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (7, 9), (3, 9), (1, 1)])
def test_resize_oracle(size: tuple[int, int]) -> None:
    maps = random(2, 4, 5)
    expected = [reference.resize(sample, *size) for sample in maps.tolist()]
    torch.testing.assert_close(resize_maps(maps, size), torch.tensor(expected, dtype=torch.float64))
