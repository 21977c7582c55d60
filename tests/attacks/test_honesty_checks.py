"""Each check on results that are made up: what passes, what fails, and what says so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor, nn

from compresslens.attacks import AttackResult, Evaluation
from compresslens.attacks.honesty import Check, Curve, panel
from compresslens.attacks.honesty.check import graded_images, skipped, success_curve, worst
from compresslens.attacks.honesty.consistency import (
    ScaledLogits,
    deterministic_check,
    scale_check,
    steps_check,
    unbounded_check,
)
from compresslens.attacks.honesty.gradients import gradient_check, useless_gradients
from compresslens.attacks.honesty.rivals import (
    TRANSFER_TO_ARTEFACT,
    noise_check,
    quartiles,
    rival_check,
    transfer_check,
)
from compresslens.attacks.honesty.rounding import rounding_check
from compresslens.attacks.honesty.trace import Trace, best_point_check, descent_check
from compresslens.reporting.honesty_figure import TITLES, draw_honesty

INF = math.inf


def found(*l2: float) -> AttackResult:
    """A result with these distances, of images of two pixels."""
    distances = torch.tensor(l2, dtype=torch.float64)
    success = torch.isfinite(distances)
    counts = torch.ones(len(l2), dtype=torch.int64)
    images = torch.zeros(len(l2), 1, 1, 2)
    images[success, 0, 0, 0] = distances[success].float()
    return AttackResult(images, success, distances, counts, torch.where(success, 1, -1))


def verdict(check: Check) -> str:
    assert check.verdict == "skipped" or check.reason
    json.dumps(check.as_json(), allow_nan=False)
    return check.verdict


# Other attacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "count", "expected"),
    [
        (0, 1, "pass"),
        (1, 1, "warn"),
        (1, 16, "warn"),
        (2, 16, "fail"),
        (2, 39, "fail"),
        (2, 40, "warn"),
        (6, 128, "warn"),
        (7, 128, "fail"),
    ],
)
def test_a_single_image_condemns_nothing(hits: int, count: int, expected: str) -> None:
    assert graded_images(hits, count) == expected


def test_the_worst_verdict_counts() -> None:
    assert worst("pass", "fail", "warn") == "fail"
    assert worst("skipped", "pass") == "pass"


def test_a_rival_that_is_nearer_on_some_images() -> None:
    white = found(*[1.0] * 15, *[INF] * 5)
    weak, strong = found(*[1.0] * 12, *[INF] * 8), found(*[1.0] * 20)
    assert verdict(rival_check("apgd", "APGD", white, [weak], [1.0])) == "pass"
    lucky = found(*[1.0] * 16, *[INF] * 4)
    assert verdict(rival_check("apgd", "APGD", white, [lucky], [1.0])) == "warn"
    check = rival_check("apgd", "APGD", white, [weak, strong], [1.0, 1.0])
    assert verdict(check) == "fail"
    assert check.value == 5 / 20
    assert check.threshold == 1 / 20
    assert check.reason == (
        "APGD is nearer than the white-box attack on 5 of 20 images; within 1 it fools 20, the white-box attack 15"
    )
    assert check.curves[1] == Curve("APGD", (1.0, 1.0), (12 / 20, 1.0))


def test_losses_elsewhere_do_not_make_up_for_partial_masking() -> None:
    """Of 16 images gradients are masked on two; a rival of few queries finds these and few others."""
    white = found(*[1.0] * 14, *[INF] * 2)
    square = found(*[INF] * 14, *[1.5] * 2)
    check = rival_check("black_box", "Square", white, [square], [1.5])
    assert verdict(check) == "fail"
    assert check.value == 2 / 16


def test_what_is_found_at_different_radii_adds_up() -> None:
    white = found(1.0, 3.0, 3.0, 3.0)
    square = [found(INF, 2.0, INF, INF), found(INF, INF, 2.9, INF)]
    assert verdict(rival_check("black_box", "Square", white, square, [2.0, 2.9])) == "fail"
    assert verdict(rival_check("black_box", "Square", white, square[:1], [2.0])) == "warn"


def test_a_rival_counts_within_its_radius_and_by_more_than_a_percent() -> None:
    white = found(*[1.005] * 10)
    assert verdict(rival_check("apgd", "APGD", white, [found(*[1.0] * 10)], [1.0])) == "pass"
    assert verdict(rival_check("apgd", "APGD", found(*[1.02] * 10), [found(*[1.0] * 10)], [1.0])) == "fail"
    assert verdict(rival_check("apgd", "APGD", found(*[1.02] * 10), [found(*[0.9] * 10)], [2.0])) == "fail"
    assert verdict(rival_check("apgd", "APGD", found(*[1.02] * 10), [found(*[1.01] * 10)], [1.0])) == "pass"


def test_a_white_box_attack_that_is_better_at_one_radius_may_fail_at_another() -> None:
    white = found(*[0.1] * 10, *[3.0] * 10)
    square = [found(*[INF] * 20), found(*[1.0] * 20)]
    assert verdict(rival_check("black_box", "Square", white, square, [0.2, 1.0])) == "fail"


def test_rivals_with_nothing_to_compare() -> None:
    nothing = found(INF, INF)
    assert verdict(rival_check("apgd", "APGD", nothing, [nothing], [1.0])) == "skipped"
    assert verdict(rival_check("apgd", "APGD", nothing, [], [])) == "skipped"
    assert quartiles(nothing.l2) == []
    assert quartiles(found(0.0, 1.0, 2.0, 3.0, INF).l2) == [1.5, 2.0, 2.5]
    assert quartiles(found(2.0).l2) == [2.0]


@pytest.mark.parametrize(
    ("white", "noise", "expected"),
    [
        ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], "pass"),
        ([0.1, 0.2, 0.3], [INF, INF, INF], "pass"),
        ([0.1, 0.2, 0.3], [0.17, 0.34, 0.5], "warn"),
        ([0.1, 0.2, 0.3], [0.12, 0.24, 0.4], "fail"),
        ([INF, INF, INF], [1.0, 2.0, 3.0], "fail"),
        ([INF, INF, INF], [INF, INF, INF], "skipped"),
        ([*[0.1] * 30, 0.5], [*[1.0] * 30, 0.4], "warn"),
        ([*[0.1] * 10, 0.5], [*[1.0] * 10, 0.4], "warn"),
        ([*[0.1] * 10, 0.5, 0.5], [*[1.0] * 10, 0.4, 0.4], "fail"),
    ],
)
def test_noise(white: list[float], noise: list[float], expected: str) -> None:
    assert verdict(noise_check(found(*white), found(*noise))) == expected


def test_transfer() -> None:
    white = found(1.0, 2.0, 3.0)
    assert verdict(transfer_check(white, None)) == "skipped"
    assert verdict(transfer_check(white, found(INF, INF, INF))) == "skipped"
    assert verdict(transfer_check(white, found(1.1, 2.1, 3.1))) == "pass"
    assert verdict(transfer_check(white, found(0.5, 2.0, 3.0))) == "warn", "a third of the images, but not the median"
    assert verdict(transfer_check(white, found(1.0, 1.9, 3.0))) == "warn", "the median, but by a single image"
    check = transfer_check(white, found(1.0, 1.9, 2.9))
    assert verdict(check) == "fail"
    assert check.value == pytest.approx(0.05)
    assert verdict(transfer_check(white, found(1.0, 1.985, 3.0))) == "pass"
    assert verdict(transfer_check(white, found(1.0, 1.92, 2.9), TRANSFER_TO_ARTEFACT)) == "warn"
    assert verdict(transfer_check(white, found(1.0, 1.92, 3.0), TRANSFER_TO_ARTEFACT)) == "pass"
    assert verdict(transfer_check(white, found(1.0, 1.8, 2.9), TRANSFER_TO_ARTEFACT)) == "fail"
    assert verdict(transfer_check(found(INF, INF, INF), found(1.0, INF, 1.0))) == "fail"


# Consistency ----------------------------------------------------------------------------------------------------------


def test_the_scale_of_the_logits() -> None:
    white = found(1.0, 2.0, 3.0)
    assert verdict(scale_check(white, {0.01: found(1.0, 2.03, 3.0), 100.0: white})) == "pass"
    assert verdict(scale_check(white, {0.01: found(1.0, 2.06, 3.0), 100.0: white})) == "warn"
    check = scale_check(white, {0.01: white, 100.0: found(1.0, 1.8, 3.0)})
    assert verdict(check) == "fail"
    assert check.value == pytest.approx(0.1)
    assert "logits × 100" in check.reason
    assert verdict(scale_check(white, {0.01: found(1.0, INF, INF)})) == "fail"
    assert verdict(scale_check(found(INF, INF), {0.01: found(1.0, 1.0)})) == "fail"
    assert verdict(scale_check(found(INF, INF), {0.01: found(INF, INF)})) == "skipped"
    network = nn.Linear(3, 4)
    x = torch.rand(2, 3)
    assert torch.equal(ScaledLogits(network, 100.0)(x), 100 * network(x))


@pytest.mark.parametrize(
    ("longer", "expected"),
    [(2.0, "pass"), (1.97, "pass"), (1.9, "warn"), (1.5, "fail"), (2.03, "warn"), (2.1, "fail"), (INF, "fail")],
)
def test_more_steps(longer: float, expected: str) -> None:
    assert verdict(steps_check(found(1.0, 2.0, 3.0), found(1.0, longer, 3.0))) == expected


def test_more_steps_without_success() -> None:
    assert verdict(steps_check(found(INF, INF), found(INF, INF))) == "skipped"
    assert verdict(steps_check(found(INF, INF), found(1.0, 1.0))) == "fail"


def test_more_steps_on_single_images() -> None:
    """Sixteen images of which the median ones do not change."""
    white = found(*[1.0] * 12, *[3.0] * 4)
    for odd, lost, gained in (([3.0], 0, 0), ([3.2], 1, 0), ([INF], 1, 0)):
        check = steps_check(white, found(*[1.0] * 12, *[3.0] * 3, *odd))
        assert verdict(check) == ("warn" if lost else "pass")
        assert f"on {lost} of 16 images and fools {gained} more" in check.reason
        assert verdict(steps_check(white, found(*[1.0] * 12, *[3.0] * 2, *odd * 2))) == ("fail" if lost else "pass")
    assert verdict(steps_check(found(*[1.0] * 14, INF, 2.0), found(*[1.0] * 14, 3.0, 2.0))) == "warn"
    check = steps_check(found(*[1.0] * 14, INF, INF), found(*[1.0] * 14, 3.0, 3.0))
    assert verdict(check) == "fail"
    assert "fools 2 more" in check.reason
    assert verdict(steps_check(found(*[INF] * 16), found(*[INF] * 14, 1.0, 1.0))) == "fail"


def test_the_scale_of_the_logits_and_single_images() -> None:
    white = found(*[1.0] * 12, *[3.0] * 4)
    for odd in (2.8, 3.2, INF):
        one, two = (found(*[1.0] * 12, *[3.0] * (4 - k), *[odd] * k) for k in (1, 2))
        assert verdict(scale_check(white, {0.01: white, 100.0: one})) == "warn"
        check = scale_check(white, {0.01: two, 100.0: white})
        assert verdict(check) == "fail"
        assert check.reason.endswith("with the logits × 0.01; on 2 of 16 images it changes by more than 5%")
    assert verdict(scale_check(white, {100.0: found(*[1.0] * 12, *[3.1] * 4)})) == "pass"
    assert verdict(scale_check(found(*[INF] * 16), {100.0: found(*[INF] * 14, 1.0, 1.0)})) == "fail"


def test_the_same_answer_twice() -> None:
    logits = torch.tensor([[5.0, -100.0], [2.0, 1.0], [INF, 0.0], [0.0, 0.0]]).repeat(4, 1)
    check = deterministic_check(logits, logits.clone())
    assert verdict(check) == "pass"
    assert (check.value, check.threshold) == (0, 0.05)
    assert verdict(deterministic_check(logits, logits * (1 + 1e-6))) == "pass", "sums in another order"
    noisy = logits.clone()
    noisy[1, 1] += 1e-3
    assert verdict(deterministic_check(logits, noisy)) == "warn"
    noisy[5, 0] -= 1e-3
    assert verdict(deterministic_check(logits, noisy)) == "fail"


def test_an_attack_without_bound() -> None:
    assert verdict(unbounded_check(found(1.0, 20.0))) == "pass"
    check = unbounded_check(found(1.0, INF))
    assert verdict(check) == "fail"
    assert (check.value, check.threshold) == (0.5, 1.0)


# The course of the attack ---------------------------------------------------------------------------------------------


def trace(*rows: tuple[int, float, float, float]) -> Trace:
    """A trace of rows (image, distance, margin, norm of the gradient), one evaluation each."""
    course = Trace(torch.zeros(10, 1, 1, 2))
    for sample, distance, margin, norm in rows:
        point, gradient = torch.zeros(2, 1, 1, 1, 2)
        point[..., 0], gradient[..., 1] = distance, norm
        course(Evaluation(torch.tensor([sample]), point, torch.tensor([margin]), gradient))
    return course


def test_a_trace_of_several_rows() -> None:
    images = torch.rand(3, 1, 2, 2)
    points, gradients = torch.rand(2, 4, 1, 2, 2)
    samples = torch.tensor([2, 0, 2, 1])
    course = Trace(images)
    course(Evaluation(samples, points, torch.arange(4.0), gradients))
    course(Evaluation(samples[:1], points[:1], torch.ones(1), torch.zeros(1, 1, 2, 2)))
    assert course.samples.tolist() == [2, 0, 2, 1, 2]
    assert course.margins.tolist() == [0, 1, 2, 3, 1]
    assert course.l2[1] == pytest.approx(float((points[1] - images[0]).norm()))
    assert course.useless.tolist() == [False] * 4 + [True]


def test_the_margin_must_fall() -> None:
    falling = [(0, 0.0, 2.0, 1.0), (0, 0.5, 1.0, 1.0), (0, 0.6, 3.0, 1.0)]
    check = descent_check(trace(*falling))
    assert verdict(check) == "pass"
    assert check.curves[0] == Curve("median over the images", (1.0, 2.0, 3.0), (1.0, 0.5, 0.5))
    flat = [(1, 0.0, 2.0, 1.0), (1, 0.5, 2.0, 1.0)]
    assert verdict(descent_check(trace(*falling, *flat))) == "warn"
    unknown = [(2, 0.0, 1.0, 1.0), (2, 0.1, math.nan, 1.0)]
    check = descent_check(trace(*falling, *flat, *unknown))
    assert verdict(check) == "fail"
    assert check.value == 2 / 3
    assert verdict(descent_check(trace())) == "skipped"


def test_the_best_point_must_be_returned() -> None:
    course = trace((0, 0.0, 1.0, 1.0), (0, 0.5, -1.0, 1.0), (0, 0.4, -0.1, 1.0), (0, 0.1, 0.1, 1.0), (1, 0.2, 0.0, 1.0))
    assert verdict(best_point_check(course, found(0.4, INF))) == "pass"
    assert verdict(best_point_check(course, found(0.3, 0.1))) == "pass", "found elsewhere"
    for moved in (0.4 * 1.01, 0.5, INF):
        assert verdict(best_point_check(course, found(moved, INF))) == "warn", "a single image"


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1.0, "pass"),
        (1.0005, "pass"),
        (1.0012, "warn"),
        (1.01, "warn"),
        (1.0105, "warn"),
        (1.02, "fail"),
        (INF, "fail"),
    ],
)
def test_points_that_are_moved_on_for_the_last_check(factor: float, expected: str) -> None:
    course = trace(*((sample, 0.5, -1.0, 1.0) for sample in range(3)))
    check = best_point_check(course, found(*[0.5 * factor] * 3))
    assert verdict(check) == expected
    assert check.value == (expected == "fail")


def test_no_best_point() -> None:
    assert verdict(best_point_check(trace((0, 0.1, 1.0, 1.0)), found(INF))) == "skipped"
    assert verdict(best_point_check(trace(), found(0.0))) == "skipped"


@pytest.mark.parametrize("norm", [0.0, 1e-30, math.nan, INF])
def test_useless_gradients_of_the_attack(norm: float) -> None:
    clean = torch.zeros(4, dtype=torch.bool)
    good = [(sample, 0.1, 1.0, 1.0) for sample in range(4)]
    bad = [(sample, 0.1, 1.0, norm) for sample in range(4)]
    assert verdict(gradient_check(clean, trace(*good * 3))) == "pass"
    assert verdict(gradient_check(clean, trace(*good * 30, *bad))) == "warn", "few of each image"
    assert verdict(gradient_check(clean, trace(*good * 3, bad[0]))) == "warn", "many of one image"
    check = gradient_check(clean, trace(*good * 3, *bad[:2]))
    assert verdict(check) == "fail"
    assert check.value == 0.5
    assert verdict(gradient_check(torch.tensor([True, False]), trace(good[0]))) == "warn"
    assert verdict(gradient_check(torch.tensor([True, False, True]), trace(good[0]))) == "fail"
    assert verdict(gradient_check(torch.tensor([True, False, False]), trace(*good[:3], bad[1]))) == "fail"


class Mixed(nn.Module):
    """Two pixels; by the first, the gradient is a number, zero or not a number."""

    def forward(self, images: Tensor) -> Tensor:
        first, second = images.flatten(1).T
        bent = second * torch.where(first > 0.75, torch.nan, (first < 0.25).float())
        return torch.stack([bent + 1, -bent], 1)


def test_useless_gradients_at_the_images() -> None:
    images = torch.tensor([[0.1, 0.4], [0.5, 0.4], [0.9, 0.4]]).view(3, 1, 1, 2)
    labels = torch.zeros(3, dtype=torch.int64)
    for chunk_size in (2, 64):
        assert useless_gradients(Mixed(), images, labels, chunk_size).tolist() == [False, True, True]
    frozen = nn.Sequential(nn.Flatten(), nn.Threshold(9, 9), nn.Linear(2, 2)).requires_grad_(False)
    assert useless_gradients(frozen, images, labels).all()

    class Numbers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 2)

    assert useless_gradients(Numbers(), images, labels).all()


# Rounding -------------------------------------------------------------------------------------------------------------


class Plane(nn.Module):
    """Class 1 where the sum of the pixels exceeds a bound."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, images: Tensor) -> Tensor:
        total = images.double().flatten(1).sum(1) - self.bound
        return torch.stack([-total, total], 1)


class OffGrid(nn.Module):
    """Class 1 where pixels are not multiples of 1/255: what rounding destroys."""

    def forward(self, images: Tensor) -> Tensor:
        levels = images.flatten(1) * 255
        off = (levels - levels.round()).abs().mean(1) - 0.05
        return torch.stack([-off, off], 1)


def moved(images: Tensor, offset: float) -> AttackResult:
    adversarials = images + offset
    count = len(images)
    ones = torch.ones(count, dtype=torch.int64)
    l2 = (adversarials - images).double().flatten(1).norm(dim=1)
    return AttackResult(adversarials, ones.bool(), l2, ones, ones)


@pytest.mark.parametrize("size", [2, 64])
def test_rounding_with_many_pixels_or_few(size: int) -> None:
    """Each pixel moves by a third of a level if there are many: rounding to the nearest would undo all of it."""
    images = torch.full((8, 1, size, size), 100 / 255)
    offset = 30 / 255 / size**1.18
    network = Plane(size * size * (100 / 255 + offset) - 1e-6)
    check = rounding_check(network, images, torch.zeros(8, dtype=torch.int64), moved(images, offset))
    assert verdict(check) == "pass"
    nearest = check.curves[0].y
    assert nearest[2] == (1.0 if size == 2 else 0.0)


def test_what_rounding_destroys() -> None:
    images = torch.full((8, 1, 4, 4), 100 / 255)
    white = moved(images, 0.1 / 255)
    labels = torch.zeros(8, dtype=torch.int64)
    assert (OffGrid()(white.adversarials).argmax(1) == 1).all()
    check = rounding_check(OffGrid(), images, labels, white)
    assert verdict(check) == "fail"
    assert check.value == 0
    one = AttackResult(*(value[:1] for value in vars(white).values()))
    assert verdict(rounding_check(OffGrid(), images[:1], labels[:1], one)) == "warn", "a single image"
    assert verdict(rounding_check(OffGrid(), images[:2], labels[:2], found(INF, 0.0))) == "skipped"


# All together ---------------------------------------------------------------------------------------------------------


def check(name: str, outcome: Any) -> Check:
    return Check(name, outcome, 0.5, 0.1, f"{name} was seen")


def test_any_failure_makes_it_unreliable() -> None:
    good = [check(name, "pass") for name in TITLES]
    assert panel(good) == ("ok", "no sign of masked gradients: 12 of 12 checks passed")
    for number, name in enumerate(TITLES):
        word, text = panel([*good[:number], check(name, "fail"), *good[number + 1 :]])
        assert word == "unreliable"
        assert text.startswith("unreliable: ")
        assert f"{name} was seen" in text
    assert panel([check("noise", "fail"), check("apgd", "fail"), check("gradients", "pass")])[1] == (
        "unreliable: gradients are masked because noise was seen; apgd was seen"
    )
    assert "masked" not in panel([check("apgd", "fail")])[1]


def test_warnings_are_said_and_nothing_is_called_robust() -> None:
    word, text = panel([check("noise", "pass"), check("transfer", "warn"), skipped("apgd", "no reference")])
    assert (word, text) == (
        "ok",
        "no sign of masked gradients: 1 of 3 checks passed; to be looked at: transfer was seen",
    )
    assert panel([]) == panel([skipped("noise", "x")]) == ("unreliable", "unreliable: nothing could be checked")


def test_success_curve() -> None:
    assert success_curve("x", found(2.0, INF, 1.0, 1.0).l2) == Curve("x", (0, 1, 1, 2), (0, 0.25, 0.5, 0.75))
    assert success_curve("x", found(INF).l2) == Curve("x", (0,), (0,))


def test_the_figure_has_a_panel_for_each_check(tmp_path: Path) -> None:
    white = found(*np.linspace(0.1, 2, 30), INF)
    checks = [
        unbounded_check(white),
        noise_check(white, found(*np.linspace(1, 3, 31))),
        descent_check(trace((0, 0.0, 2.0, 1.0), (0, 0.5, 1.0, 1.0))),
        skipped("transfer", "there is no reference network"),
        rival_check("apgd", "APGD", white, [found(*[0.4] * 31)] * 2, [0.5, 1.0]),
    ]
    draw_honesty(checks, tmp_path / "figure.png", "unreliable: " + "a long reason, " * 30)
    picture = imread(tmp_path / "figure.png")
    assert picture.shape[1] > 1500
    height, width = picture.shape[0], picture.shape[1]
    below = picture[int(0.6 * height) :]
    assert below[:, : width // 4].std() > 0.01, "the fifth check begins a second row"
    assert below[:, width // 2 :, :3].min() == 1, "nothing where there is no check"
