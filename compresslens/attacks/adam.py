"""Carlini & Wagner's own way: Adam on ‖x' - x‖² + c·max(margin + κ, 0), and a search over c for each image.

Carlini & Wagner 2017 (arXiv:1608.04644), section V-C, L2 attack. Every image has its own c, its own learning rate
schedule and its own end: what happens to the others of the batch does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compresslens.attacks.search import Search

Space = Literal["box", "tanh"]
Schedule = Literal["fast", "paper"]
BETAS, EPSILON = (0.9, 0.999), 1e-12
INSIDE = 0.999  # pixels at exactly 0 or 1 would have an infinite tanh coordinate; closer to it they hardly move


@dataclass(frozen=True)
class Plan:
    """How much is spent on an image, and how.

    Attributes:
        rounds: values of c.
        steps: of Adam for each c, at most.
        rates: learning rate of the first and of the last step (cosine between), in pixels [0, 1] or tanh coordinates;
            with `relative` for each image as a share of its distance divided by √D.
        relative: see `rates`. Adam moves every pixel by about its rate: a fixed one overshoots where pixels are many.
        patience: steps without an improvement of the loss by 0.1 % after which a round ends; 0: never.
        warm: rounds start from the best adversarial so far, rather than from the image.
        weight: first c; None: twice the one that the linearized margin asks for, which makes the attack blind to the
            scale of the logits.
        factor: by which c grows until there is a success.
    """

    rounds: int
    steps: int
    rates: tuple[float, float]
    relative: bool
    patience: int
    warm: bool
    weight: float | None
    factor: float


PLANS: dict[tuple[Schedule, Space], Plan] = {
    ("paper", "tanh"): Plan(9, 1000, (0.01, 0.01), False, 0, False, 1e-3, 10.0),
    ("paper", "box"): Plan(9, 1000, (0.01, 0.01), False, 0, False, 1e-3, 10.0),
    ("fast", "box"): Plan(3, 120, (1.0, 0.01), True, 40, True, None, 3.0),
    ("fast", "tanh"): Plan(5, 100, (0.1, 0.005), False, 20, True, None, 3.0),
}


def minimize(search: Search, plan: Plan, space: Space) -> None:
    """Runs the attack on the images of a search, in which what it finds is kept."""
    everything = torch.arange(len(search), device=search.images.device)
    weights, expected = _first_weights(search, everything, plan)
    low, high = torch.zeros_like(weights), torch.full_like(weights, torch.inf)
    for _ in range(plan.rounds):
        starts = search.best if plan.warm else search.images
        expected = torch.where(torch.isfinite(search.distance), search.distance, expected)
        units = expected / math.sqrt(search.images.shape[1]) if plan.relative else torch.ones_like(expected)
        found = _round(search, everything, weights, starts, units, plan, space)
        high = torch.where(found, torch.minimum(high, weights), high)
        low = torch.where(found, low, torch.maximum(low, weights))
        weights = torch.where(torch.isinf(high), weights * plan.factor, (low + high) / 2)


def _first_weights(search: Search, everything: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """First c of each image, and the distance to expect.

    If the margin were linear, the least perturbation d would solve 2·d = c·(-gradient) and gradient·d = -margin. A
    smaller c cannot succeed there; twice as much does.
    """
    if plan.weight is not None:
        return torch.full_like(search.distance, plan.weight), search.distance
    constraint, gradients, _ = search.evaluate(everything, search.images, torch.zeros_like(search.distance))
    length = gradients.norm(dim=1)
    reachable = length > 0
    weights = torch.where(reachable, 4 * constraint / length.square(), 1.0)
    most = math.sqrt(search.images.shape[1])  # the diagonal of the box
    return weights, torch.where(reachable, constraint / length, most).clamp_max(most)


def _round(
    search: Search, rows: Tensor, weights: Tensor, starts: Tensor, units: Tensor, plan: Plan, space: Space
) -> Tensor:
    """Adam for one c per image, with rates in these units; whether it came by an adversarial (N bool)."""
    found = torch.zeros_like(weights, dtype=torch.bool)
    least = torch.full_like(weights, torch.inf)
    waited = torch.zeros_like(search.labels)
    variables = _encode(starts, space)
    mean, square = torch.zeros_like(variables), torch.zeros_like(variables)
    for step in range(plan.steps):
        images = search.images[rows]
        points = _decode(variables, space)
        offsets = points - images
        distances = offsets.norm(dim=1)
        constraint, gradients, adversarial = search.evaluate(rows, points, distances)
        found[rows] |= adversarial
        loss = distances.square() + weights[rows] * constraint.clamp_min(0)
        improved = loss < least[rows] * (1 - 1e-3)
        waited[rows] = torch.where(improved, 0, waited[rows] + 1)
        least[rows] = torch.minimum(least[rows], loss)

        slope = 2 * offsets + (weights[rows] * (constraint > 0))[:, None] * gradients
        if space == "tanh":
            slope *= 2 * points * (1 - points)  # of (tanh w + 1) / 2
        mean = mean.lerp(slope, 1 - BETAS[0])
        square = square.lerp(slope.square(), 1 - BETAS[1])
        rate = _cosine(plan.rates, step / max(plan.steps - 1, 1))
        debiased = (square / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(EPSILON)
        variables = variables - (rate / (1 - BETAS[0] ** (step + 1)) * units[rows])[:, None] * mean / debiased
        if space == "box":
            variables = variables.clamp(0, 1)

        if plan.patience:
            going = waited[rows] < plan.patience
            if not going.any():
                break
            if not going.all():
                rows, variables, mean, square = rows[going], variables[going], mean[going], square[going]
    return found


def _encode(points: Tensor, space: Space) -> Tensor:
    return points.clone() if space == "box" else torch.atanh((2 * points - 1) * INSIDE)


def _decode(variables: Tensor, space: Space) -> Tensor:
    return variables if space == "box" else (torch.tanh(variables) + 1) / 2


def _cosine(ends: tuple[float, float], progress: float) -> float:
    return ends[1] + (ends[0] - ends[1]) * (1 + math.cos(math.pi * progress)) / 2
