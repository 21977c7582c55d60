"""The least perturbation that fools a network."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from compresslens.attacks.adam import PLANS, Schedule, Space, minimize
from compresslens.attacks.checks import check_classes, check_images, check_labels, check_logits
from compresslens.attacks.margin import is_adversarial, margin
from compresslens.attacks.projection import project
from compresslens.attacks.refine import refine as refine_search
from compresslens.attacks.result import NEVER, AttackResult
from compresslens.attacks.search import Observer, Search, forward_rows, logits_in_chunks
from compresslens.networks.modes import input_gradients

Solver = Literal["projection", "adam"]
FURTHER = (1.0, 1.001, 1.01)  # factors of the perturbation that the last check tries


def carlini_wagner_l2(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    confidence: float = 0.0,
    solver: Solver = "projection",
    evaluations: int = 40,
    schedule: Schedule = "fast",
    space: Space | None = None,
    refine: int = 0,
    chunk_size: int = 64,
    observe: Observer | None = None,
) -> AttackResult:
    """Solves the problem of Carlini & Wagner 2017 (arXiv:1608.04644): the least L2 perturbation within [0, 1] that
    makes another class win.

    minimize ‖x' - x‖₂ subject to margin(x') ≤ -confidence and 0 ≤ x' ≤ 1, where the margin is the label's logit minus
    the largest other (or, with targets, the largest other logit minus the target's).

    The result of an image does not depend on the others of the call: on CPU it is bitwise the same in every order,
    number and chunk. Adding a constant to the logits, or scaling them, changes nothing beyond rounding (but for the
    schedule "paper", and with a confidence, which is a difference of logits). There is no randomness.

    Args:
        network: from pixels [0, 1] to logits. It runs in eval mode with frozen parameters and in float32; every
            module's flag and every `requires_grad` are put back, on exceptions too. No gradient accumulates. The
            caller may be under `torch.no_grad` or `torch.inference_mode`.
        images: N×C×H×W in [0, 1], float32 or float64, on the network's device; N may be 0.
        labels: N int64, the true classes.
        targets: N int64, other classes that are to win; None: any other class may.
        confidence: κ, at least 0; by how much the winning logit must exceed the rest.
        solver: "projection" linearizes the margin step by step (see `compresslens.attacks.projection`): nearest
            adversarials, for distances. "adam" is the paper's own way (see `compresslens.attacks.adam`): for the
            question of what the attack costs.
        evaluations: gradient evaluations per image that the projection may spend, at least 1. 100 find
            adversarials that are 0.5 % nearer, and 2 % on adversarially trained networks.
        schedule: of Adam. "fast": three values of c in the space "box", five in "tanh", and each image stops when it
            stands still. "paper": nine times 1,000 steps from c = 0.001.
        space: of Adam's variables: "box" (pixels, clipped) or "tanh" (the paper's change of variables). None: "box",
            but "tanh" for the paper's schedule.
        refine: further evaluations per image around the best point, see `compresslens.attacks.refine`; 60 are
            advisable on quantized networks, whose staircase misleads a linearization.
        chunk_size: images at a time.
        observe: is told each evaluation of the network; for checks of the attack itself.

    Returns:
        The nearest adversarial found for each image, verified by a forward pass of its own. An image that is
        misclassified to begin with is a success at distance 0 and costs nothing.

    Raises:
        ValueError: images outside of [0, 1], labels or targets out of range, targets that are the labels, logits that
            are not N×C or not numbers, settings out of range.
    """
    _check_settings(confidence, solver, evaluations, schedule, space, refine, chunk_size)
    check_images(images)
    check_labels("labels", labels, images)
    if targets is not None:
        check_labels("targets", targets, images)
        if bool((targets == labels).any()):
            raise ValueError("a target is the label itself; a targeted attack needs another class")
    targeted = targets is not None
    space = space or ("tanh" if schedule == "paper" else "box")
    with input_gradients(network):
        images, labels = _plain(images).contiguous(), _plain(labels)  # laid out as what is verified
        aims = labels if targets is None else _plain(targets)
        result = _nothing(images)
        if len(images) == 0:
            return result
        logits = logits_in_chunks(network, images, chunk_size)
        check_logits(logits, torch.arange(len(images)))
        check_classes("labels", labels, logits)
        check_classes("targets", aims, logits)
        _enter(result, is_adversarial(_margins(logits, aims, targeted), confidence))
        pending = torch.nonzero(~result.success)[:, 0]
        for numbers in pending.split(chunk_size) if len(pending) else ():
            search = Search(
                network,
                images[numbers],
                aims[numbers],
                targeted=targeted,
                confidence=confidence,
                observe=observe,
                numbers=numbers,
            )
            if solver == "projection":
                project(search, evaluations)
            else:
                minimize(search, PLANS[schedule, space], space)
            if refine:
                refine_search(search, refine)
            _write(result, numbers, search)
    return result


def _plain(tensor: Tensor) -> Tensor:
    """Without history, and usable in autograd even if it was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _nothing(images: Tensor) -> AttackResult:
    count, device = len(images), images.device
    return AttackResult(
        adversarials=images.clone(),
        success=torch.zeros(count, dtype=torch.bool, device=device),
        l2=torch.full((count,), torch.inf, dtype=torch.float64, device=device),
        gradient_evaluations=torch.zeros(count, dtype=torch.int64, device=device),
        first_success=torch.full((count,), NEVER, dtype=torch.int64, device=device),
    )


def _margins(logits: Tensor, aims: Tensor, targeted: bool) -> Tensor:
    """Negative where the attack has reached its aim."""
    margins = margin(logits, aims)
    return -margins if targeted else margins


def _enter(result: AttackResult, reached: Tensor) -> None:
    """Enters the images (N bool) whose aim is reached without any attack."""
    result.success[reached] = True
    result.l2[reached] = 0.0
    result.first_success[reached] = 0


def _write(result: AttackResult, numbers: Tensor, search: Search) -> None:
    """Verifies the best points of a search and enters them."""
    result.gradient_evaluations[numbers] = search.evaluations
    offsets = search.best - search.images
    left = torch.isfinite(search.distance)
    for factor in FURTHER:  # the factors beyond 1 are for devices that do not round the same in every batch
        if not left.any():
            break
        points = torch.clamp(search.images + factor * offsets, 0, 1) if factor > 1 else search.best
        with torch.no_grad():
            logits = forward_rows(search.network, points.view(-1, *search.shape))
        margins = _margins(logits, search.labels, search.targeted)
        confirmed = left & is_adversarial(margins, search.confidence)
        rows = numbers[confirmed]
        result.adversarials[rows] = points[confirmed].view(-1, *search.shape)
        result.success[rows] = True
        result.l2[rows] = (points.double() - search.images.double()).norm(dim=1)[confirmed]
        result.first_success[rows] = search.first_success[confirmed]
        left &= ~confirmed


def _check_settings(
    confidence: float,
    solver: str,
    evaluations: int,
    schedule: str,
    space: str | None,
    refine: int,
    chunk_size: int,
) -> None:
    if not 0 <= confidence < math.inf:
        raise ValueError(f"confidence is {confidence}; it must be a number of at least 0")
    for name, value, options in (
        ("solver", solver, get_args(Solver)),
        ("schedule", schedule, get_args(Schedule)),
        ("space", space, (None, *get_args(Space))),
    ):
        if value not in options:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, options))}")
    for name, number, least in (("evaluations", evaluations, 1), ("refine", refine, 0), ("chunk_size", chunk_size, 1)):
        if number < least:
            raise ValueError(f"{name} is {number}; it must be at least {least}")
