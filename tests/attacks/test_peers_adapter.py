"""torchattacks behind our conventions: judged by us, counted, seeded, and without traces."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn

from compresslens.attacks.peers import StandIn, torchattacks_attack
from compresslens.attacks.result import NEVER
from compresslens.errors import UserError
from tests.attacks.trained import correct, digits, trained

ATTACKS: dict[str, dict[str, Any]] = {
    "APGD": {"eps": 0.3, "steps": 8},
    "APGDT": {"eps": 0.3, "steps": 4},
    "Square": {"eps": 0.5, "n_queries": 40},
    "PGD": {"eps": 0.1},
    "PGDL2": {"eps": 0.3},
    "FAB": {"eps": 2.0, "steps": 3},
    "CW": {"steps": 20},
    "GN": {"std": 0.4},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_it_returns_is_judged_by_the_network(attack: str) -> None:
    network = trained()
    images, labels = (part[:40] for part in digits())
    options = ATTACKS[attack]
    result = torchattacks_attack(network, images, labels, attack, **options)
    assert result.adversarials.min() >= 0
    assert result.adversarials.max() <= 1
    wrong = network(images).argmax(1) != labels
    assert 0 < int(wrong.sum()) < 10
    assert result.success.tolist() == (network(result.adversarials).argmax(1) != labels).tolist()
    assert result.success[~wrong].any(), "else nothing is tested"
    distances = (result.adversarials.double() - images.double()).flatten(1).norm(dim=1)
    assert torch.equal(result.l2, torch.where(result.success, distances, torch.inf))
    assert torch.equal(result.adversarials[~result.success], images[~result.success])
    assert not result.l2[wrong].any()
    assert not result.gradient_evaluations[wrong].any()
    assert not result.first_success[wrong].any()
    assert ((result.first_success == NEVER) == ~result.success).all()
    assert (result.first_success <= result.gradient_evaluations).all()
    if "eps" in options and attack != "PGD":
        assert (result.l2[result.success] <= options["eps"] * (1 + 1e-5)).all(), "eps is an L2 distance in pixel units"


def test_it_is_the_peer_attack() -> None:
    images, labels = correct(trained(), 24)
    peer = torchattacks.PGDL2(trained(), eps=0.5, alpha=0.1, steps=10)
    torch.manual_seed(3)
    expected = peer(images, labels)
    result = torchattacks_attack(trained(), images, labels, "PGDL2", seed=3, eps=0.5, alpha=0.1, steps=10)
    hit = trained()(expected).argmax(1) != labels
    assert result.success.tolist() == hit.tolist()
    assert hit.float().mean() > 0.5
    torch.testing.assert_close(result.adversarials[hit], expected[hit])


@pytest.mark.parametrize(
    ("attack", "options", "expected"),
    [
        ("PGDL2", {"eps": 0.3, "steps": 7}, 7),
        ("APGD", {"eps": 0.3, "steps": 5}, 6),  # and the random start
        ("FAB", {"eps": 9.0, "steps": 3}, 30),  # one for each class
        ("GN", {}, 0),
        ("Square", {"eps": 0.1, "n_queries": 5}, 0),
    ],
)
def test_backward_passes_are_counted(attack: str, options: dict[str, Any], expected: int) -> None:
    images, labels = correct(trained(), 20)
    result = torchattacks_attack(trained(), images, labels, attack, **options)
    assert result.gradient_evaluations.tolist() == [expected] * 20


def test_restarts_count_for_the_images_they_are_about() -> None:
    images, labels = correct(trained(), 20)
    first = torchattacks_attack(trained(), images, labels, "APGD", eps=0.2, steps=5)
    assert 0 < int(first.success.sum()) < 20
    second = torchattacks_attack(trained(), images, labels, "APGD", eps=0.2, steps=5, n_restarts=2)
    assert second.gradient_evaluations.tolist() == [6 if hit else 12 for hit in first.success.tolist()]


def test_a_stand_in_counts_the_rows_of_a_backward_pass() -> None:
    images, labels = correct(trained(), 6)
    stand_in = StandIn(trained(), images, labels)
    points = images[[4, 1]].clone().requires_grad_()
    logits = stand_in(points)
    logits[0, 0].backward(retain_graph=True)
    logits.sum().backward()
    stand_in(images)
    assert stand_in.evaluations.tolist() == [0, 2, 0, 0, 2, 0]
    assert stand_in.first.tolist() == [NEVER] * 6
    torch.testing.assert_close(logits, trained()(images[[4, 1]]))


def test_the_same_arguments_give_the_same_result() -> None:
    images, labels = correct(trained(), 16)
    for attack in ("PGDL2", "APGD", "Square", "GN", "FAB"):
        results = []
        for _ in range(2):
            torch.rand(3), np.random.rand(3), random.random()
            results.append(torchattacks_attack(trained(), images, labels, attack, seed=1, **ATTACKS[attack]))
        assert torch.equal(results[0].adversarials, results[1].adversarials)
        assert torch.equal(results[0].l2, results[1].l2)
    other = torchattacks_attack(trained(), images, labels, "PGDL2", seed=2, **ATTACKS["PGDL2"])
    same = torchattacks_attack(trained(), images, labels, "PGDL2", seed=1, **ATTACKS["PGDL2"])
    assert not torch.equal(other.adversarials, same.adversarials)


class Fragile(nn.Module):
    """Flags, gradients and statistics that must not change; may fail in the middle of an attack."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
            self.head = nn.Linear(256, 10)
        self.train()
        self.body[1].eval()
        self.body[0].weight.requires_grad_(False)
        self.head.weight.grad = torch.ones_like(self.head.weight)
        self.calls = 10**6

    def forward(self, images: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("out of calls")
        return self.head(self.body(images))


def state(network: nn.Module) -> list[Any]:
    tensors = [value.clone() for value in network.state_dict().values()]
    gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    flags = [module.training for module in network.modules()]
    return [flags, [p.requires_grad for p in network.parameters()], gradients, tensors]


def random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("failing", [False, True])
def test_nothing_else_changes(mode: Any, failing: bool) -> None:
    network = Fragile()
    images = digits()[0][:12]
    labels = Fragile().eval()(images).argmax(1)
    if failing:
        network.calls = 4
    before, numbers = state(network), random_states()
    with mode():
        inside = images.clone()  # an inference tensor, in inference mode
        if failing:
            with pytest.raises(RuntimeError, match="out of calls"):
                torchattacks_attack(network, inside, labels, "APGD", eps=0.3, steps=8)
        else:
            for attack in ("FAB", "APGD", "Square"):
                result = torchattacks_attack(network, inside, labels, attack, **ATTACKS[attack])
                assert (result.l2 > 0).all()
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert same(state(network), before)
    assert same(random_states(), numbers)


class Threshold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 100 * 10).view(100, 10))

    def forward(self, images: Tensor) -> Tensor:
        return (images > 0.5).float().flatten(1) @ self.weight


def test_without_a_way_back_the_gradient_is_zero() -> None:
    images = digits()[0][:16]
    labels = Threshold()(images).argmax(1)
    result = torchattacks_attack(Threshold(), images, labels, "PGDL2", eps=0.3, steps=3, random_start=False)
    assert result.gradient_evaluations.tolist() == [3] * 16
    assert not result.success.any(), "it did not move"


def test_no_images_and_none_that_is_right() -> None:
    images, labels = correct(trained(), 4)
    assert len(torchattacks_attack(trained(), images[:0], labels[:0], "APGD", eps=0.1)) == 0
    wrong = torchattacks_attack(trained(), images, (labels + 1) % 10, "APGD", eps=0.1)
    assert wrong.l2.tolist() == [0.0] * 4
    single = torchattacks_attack(trained(), images[:1], labels[:1], "APGD", eps=2.0, steps=20)
    assert single.success.tolist() == [True]


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        ("apgd", {"eps": 1.0}, "torchattacks has no attack 'apgd'; did you mean APGD?"),
        ("LGV", {}, "torchattacks has no attack 'LGV'"),
        ("APGD", {}, "APGD needs eps, the greatest L2 distance in pixel units"),
        ("APGD", {"eps": 1.0, "step": 3}, "APGD has no option 'step'; its options are .*steps"),
    ],
)
def test_attacks_and_options_that_do_not_exist(attack: str, options: dict[str, Any], message: str) -> None:
    images, labels = correct(trained(), 4)
    with pytest.raises(UserError, match=message):
        torchattacks_attack(trained(), images, labels, attack, **options)


def test_what_an_attack_cannot_do() -> None:
    images, labels = correct(trained(), 4)
    three = nn.Sequential(nn.Flatten(), nn.Linear(100, 3))
    with pytest.raises(UserError, match="APGDT needs at least 4 classes; the network has 3"):
        torchattacks_attack(three, images, labels % 3, "APGDT", eps=1.0)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(UserError, match="Square cannot do L2 on images of 12×12: its tiles do not fit"):
        torchattacks_attack(wide, torch.rand(4, 1, 12, 12), labels % 3, "Square", eps=1.0)
    with pytest.raises(ValueError, match="labels go up to 10 but the network has 10 classes"):
        torchattacks_attack(trained(), images, torch.full_like(labels, 10), "APGD", eps=1.0)
    with pytest.raises(ValueError, match="attacks need pixels in \\[0, 1\\]"):
        torchattacks_attack(trained(), images * 255, labels, "APGD", eps=1.0)


@pytest.mark.parametrize("side", [4, 5, 7, 9, 10, 11, 12, 14, 15, 18, 20, 24, 28, 39])
def test_square_is_refused_exactly_where_it_would_fail(side: int) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 3))
    images = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    labels = network(images).argmax(1)
    try:
        torchattacks.Square(network, norm="L2", eps=1e-3, n_queries=2)(images, labels)
        works = True
    except (RuntimeError, ZeroDivisionError):
        works = False
    try:
        torchattacks_attack(network, images, labels, "Square", eps=1e-3, n_queries=2)
        assert works
    except UserError:
        assert not works
