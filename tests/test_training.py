from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR

from compresslens.errors import UserError
from compresslens.training import (
    build_scheduler,
    dry_run,
    newest_checkpoint,
    optimizer_steps,
    parameter_groups,
    step_seed,
)

# Parameters -----------------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def names(module: nn.Module, group: dict[str, Any]) -> list[str]:
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    return [known[id(parameter)] for parameter in group["params"]]


def test_groups() -> None:
    module = network()
    assert [names(module, group) for group in parameter_groups(module, True)] == [
        [n for n, _ in module.named_parameters()]
    ]
    assert "weight_decay" not in parameter_groups(module, True)[0], "the optimizer's own"
    matrices, vectors = parameter_groups(module, False)
    assert names(module, matrices) == ["0.weight", "3.weight"]
    assert names(module, vectors) == ["0.bias", "1.weight", "1.bias", "3.bias"]
    assert "weight_decay" not in matrices
    assert vectors["weight_decay"] == 0


@pytest.mark.parametrize("decay", [True, False])
def test_frozen_parameters_are_in_no_group(decay: bool) -> None:
    module = network()
    module[0].requires_grad_(False)  # type: ignore[index]
    found = [name for group in parameter_groups(module, decay) for name in names(module, group)]
    assert sorted(found) == ["1.bias", "1.weight", "3.bias", "3.weight"]


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ((10, 1.0, 1, 3), 30),
        ((10, 1.0, 3, 3), 12),
        ((10, 4, 1, 3), 12),
        ((10, 40, 1, 3), 30),
        ((10, 0.25, 1, 3), 6),
        ((10, 1.0, 1, 3, 25), 25),
        ((10, 1.0, 1, 3, 40), 30),
        ((10, 1.0, 1, -1, 40), 40),
        ((10, 1, 1, 3), 3),
    ],
)
def test_optimizer_steps(arguments: tuple[Any, ...], steps: int) -> None:
    assert optimizer_steps(*arguments) == steps


@given(
    batches=st.integers(1, 50),
    limit=st.one_of(st.integers(1, 60), st.floats(0.1, 1.0)),
    accumulated=st.integers(1, 7),
    epochs=st.integers(1, 4),
    most=st.integers(-1, 60).filter(lambda value: value != 0),
)
def test_optimizer_steps_against_a_plain_loop(
    batches: int, limit: float, accumulated: int, epochs: int, most: int
) -> None:
    used = int(batches * limit) if isinstance(limit, float) else limit
    steps = 0
    for _ in range(epochs):
        for batch in range(1, min(batches, used) + 1):
            last = batch == min(batches, used)
            steps += (batch % accumulated == 0 or last) and steps != most
    assert optimizer_steps(batches, limit, accumulated, epochs, most) == steps


def test_no_end() -> None:
    with pytest.raises(UserError, match=r"set trainer.max_epochs or trainer.max_steps"):
        optimizer_steps(10, 1.0, 1, -1)


def optimizer() -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)


def never() -> int:
    raise AssertionError("nobody needs the number of steps")


def test_schedulers_are_told_the_number_of_steps_if_they_need_it() -> None:
    assert build_scheduler(partial(OneCycleLR, max_lr=0.1), optimizer(), lambda: 7).total_steps == 7
    assert build_scheduler(CosineAnnealingLR, optimizer(), lambda: 7).T_max == 7
    assert build_scheduler(partial(OneCycleLR, max_lr=0.1, total_steps=5), optimizer(), never).total_steps == 5
    assert (
        build_scheduler(partial(OneCycleLR, max_lr=0.1, epochs=2, steps_per_epoch=5), optimizer(), never).total_steps
        == 10
    )
    assert build_scheduler(partial(CosineAnnealingLR, T_max=5), optimizer(), never).T_max == 5
    assert build_scheduler(partial(StepLR, step_size=3), optimizer(), never).step_size == 3


def test_other_mistakes_are_not_hidden() -> None:
    with pytest.raises(TypeError, match="step_size"):
        build_scheduler(StepLR, optimizer(), never)
    with pytest.raises(ValueError, match="pct_start"):
        build_scheduler(partial(OneCycleLR, max_lr=0.1, total_steps=5, pct_start=3.0), optimizer(), never)


# Randomness -----------------------------------------------------------------------------------------------------------


def test_seeds_differ_and_fit_every_generator() -> None:
    seeds = {step_seed(0, rank, epoch, batch) for rank in range(4) for epoch in range(20) for batch in range(200)}
    assert len(seeds) > 0.9999 * 4 * 20 * 200, "some collide by chance: 16,000 of 2³²"
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert step_seed(1, 23) != step_seed(12, 3)
    assert step_seed(0, 0, 0, 0) == 4189645723, "the same in every process and version"


# Dry run --------------------------------------------------------------------------------------------------------------


class Awkward(nn.Module):
    """Draws random numbers even in eval mode, and has parts in different modes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Dropout(0.5))
        self.body[1].eval()
        self.fails = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("too small")
        return self.body(images).mean((2, 3))


@pytest.mark.parametrize("fails", [False, True])
def test_dry_run_leaves_modes_statistics_and_gradients(fails: bool) -> None:
    module = Awkward()
    module.fails = fails
    modes, before = [m.training for m in module.modules()], {k: v.clone() for k, v in module.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError, match="too small"):
            dry_run(module, 8)
    else:
        output = dry_run(module, 8)
        assert output.shape == (1, 2)
        assert not output.requires_grad
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_dry_run_follows_the_network_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    assert dry_run(Awkward().double(), 8).dtype == torch.float64
    assert dry_run(Awkward().to("meta"), 8).device.type == "meta"
    assert dry_run(nn.Flatten(), 2).tolist() == [[0.5] * 12], "a network without parameters"
    torch.set_rng_state(state)
    dry_run(module := Awkward().eval(), 8)
    assert not module.training


# Messages -------------------------------------------------------------------------------------------------------------


def test_newest_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") == "none yet"
    for age, name in enumerate(("last.ckpt", "best.ckpt", "half.partial")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert newest_checkpoint(tmp_path) == str(tmp_path / "best.ckpt")
