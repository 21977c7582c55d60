"""Carlini & Wagner's problem solved by projections onto the linearized decision boundary.

Each step linearizes the margin and solves the rest exactly: which is the smallest perturbation, within the pixel box,
of which the linearization says that it lies on the boundary? It is a sequential quadratic program with two dampings,
since the boundary is curved: the step *onto* the boundary (normal) is taken in full, the pull *along* it towards the
image (tangential) by a share that grows while the point is adversarial and shrinks while it is not; and gradients are
averaged over the steps. Relatives: DeepFool (Moosavi-Dezfooli et al. 2016), which lacks the pull, and FAB (Croce and
Hein 2020).

The nearest point of a curved boundary that lies straight ahead is seldom the nearest of all. So the first steps go far
beyond the boundary, from where the pull finds nearer parts of it: a start that the penalty methods have by themselves.

There is no weight c to be searched, so scaling the logits changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compresslens.attacks.least_norm import dot, least_norm
from compresslens.attacks.margin import UNTARGETED
from compresslens.attacks.search import Search, forward_rows

CANDIDATES = 5  # classes, beside the label, of which the gradient is taken before the lanes are chosen
SEVERAL = 30  # evaluations from which on there are several lanes and a deep start
STAGES = {1: (), 2: ((8, 1),), 3: ((8, 2), (10, 1))}  # by number of lanes: (steps of each, how many go on)
PULL = (0.02, 0.5, 1.0)  # least, first and largest share of the tangential pull
GROW, SHRINK = 1.2, 0.8  # of that share after an adversarial point, after another
MOMENTUM = 0.7  # of the averaged gradient: without, the solver collapses
OVERSHOOT = 0.05  # of the margin, beyond the linearized boundary
DEEP, DEEP_STEPS = 1.5, 6  # more of it at first, over so many steps less and less, where there are enough to come back
BEYOND = 1e-4  # the same as a share of the distance, so that converged points end on the far side


@dataclass
class Lane:
    """Where each image's way towards one class stands.

    A lane has a row for each image: a network call is no larger than the chunk of images, however many lanes there are.

    Attributes:
        against: N, the class.
        lower: N×D, least values of the perturbation; its largest are 1 more.
        offsets: N×D, perturbation.
        pull: N, share of the tangential step.
        normals: N×D, weighted sum of the normals to the boundary; see `MOMENTUM`.
        reached: N, least distance of an adversarial point of this lane.
    """

    against: Tensor
    lower: Tensor
    offsets: Tensor
    pull: Tensor
    normals: Tensor
    reached: Tensor

    @staticmethod
    def best(lanes: list[Lane], count: int) -> list[Lane]:
        """The lanes that have reached nearest, image by image."""
        order = torch.stack([lane.reached for lane in lanes]).argsort(dim=0, stable=True)
        rows = torch.arange(order.shape[1], device=order.device)
        fields = [torch.stack([getattr(lane, name) for lane in lanes]) for name in Lane.__dataclass_fields__]
        return [Lane(*(field[order[place], rows] for field in fields)) for place in range(count)]


def project(search: Search, evaluations: int) -> None:
    """Spends a number of gradient evaluations on each image of a search.

    Where several classes can be reached, the gradients of up to five tell which are nearest by linearization; two or
    three are followed for some steps, the best of them for the rest.

    Args:
        search: what is found is kept in it.
        evaluations: per image; below 30 there is a single lane, towards whichever class is nearest at each step.
    """
    deep = DEEP if evaluations >= SEVERAL else 0.0
    against, spent = _choose_classes(search, evaluations)
    lanes = [_start(search, classes) for classes in against.unbind(1)]
    left, step = evaluations - spent, 0
    for steps, going_on in (*STAGES[len(lanes)], (left, 1)):
        for _ in range(min(steps, left // len(lanes))):
            overshoot = OVERSHOOT + deep * max(0.0, 1 - step / DEEP_STEPS)
            for lane in lanes:
                _step(search, lane, step, overshoot)
            left -= len(lanes)
            step += 1
        if going_on < len(lanes):
            lanes = Lane.best(lanes, going_on)


def _start(search: Search, against: Tensor) -> Lane:
    zeros = torch.zeros_like(search.images)
    return Lane(
        against=against,
        lower=-search.images,
        offsets=zeros,
        pull=torch.full_like(search.distance, PULL[1]),
        normals=zeros.clone(),
        reached=torch.full_like(search.distance, torch.inf),
    )


def _choose_classes(search: Search, evaluations: int) -> tuple[Tensor, int]:
    """N×K classes to go for, nearest first, and the evaluations that the choice took."""
    everything = torch.arange(len(search), device=search.images.device)
    if search.targeted:
        return search.labels[:, None], 0
    with torch.no_grad():
        logits = forward_rows(search.network, search.images.view(-1, *search.shape))
    others = logits.scatter(1, search.labels[:, None], -torch.inf)
    lanes = 1 if evaluations < SEVERAL else 2 if evaluations < 60 else 3
    lanes = min(lanes, logits.shape[1] - 1)
    if lanes == 1:
        return torch.full_like(search.labels, UNTARGETED)[:, None], 0
    candidates = others.topk(min(CANDIDATES, logits.shape[1] - 1)).indices
    classes = torch.cat([search.labels[:, None], candidates], 1)
    logits, gradients = search.class_gradients(everything, search.images, classes)
    directions = gradients[:, 1:] - gradients[:, :1]
    below, above = search.images[:, None] > 0, search.images[:, None] < 1
    reachable = torch.where(directions > 0, above, below)
    margins = logits.gather(1, classes[:, :1]) - logits.gather(1, candidates)
    lengths = (directions * reachable).norm(dim=2)
    distances = torch.where(lengths > 0, (margins + search.confidence) / lengths, torch.inf)
    nearest = distances.argsort(dim=1, stable=True)[:, :lanes]
    return candidates.gather(1, nearest), classes.shape[1]


def _step(search: Search, lane: Lane, step: int, overshoot: float) -> None:
    """Evaluates a lane where it stands, and moves it; beyond the boundary by a share of the margin."""
    offsets, lower, upper = lane.offsets, lane.lower, 1 + lane.lower
    length = offsets.norm(dim=1)
    everything = torch.arange(len(search), device=length.device)
    against = None if search.targeted else lane.against
    constraint, gradients, adversarial = search.evaluate(everything, offsets - lower, length, against)
    lane.reached = torch.where(adversarial, torch.minimum(lane.reached, length), lane.reached)
    normals = lane.normals.mul_(MOMENTUM).sub_(gradients, alpha=1 - MOMENTUM)
    squared = dot(normals, normals)
    lane.pull = (lane.pull * torch.where(adversarial, GROW, SHRINK)).clamp(PULL[0], PULL[2])

    # the mean of the normals is their sum divided by this; instead, what is compared with its products is multiplied
    weight = 1 - MOMENTUM ** (step + 1)
    needed = weight * (constraint + overshoot * constraint.abs()) + BEYOND * length * squared.sqrt()
    # adversarial by way of another class than this lane's: no need to go on towards it
    needed = torch.where(adversarial, needed.clamp_max(0), needed)
    least = least_norm(normals, (dot(normals, offsets) + needed).clamp_min(0), lower, upper, squared)
    # a negative need is a step back to the boundary
    moved = least_norm(normals, needed, lower - offsets, upper.sub_(offsets), squared).add_(offsets)
    moved.lerp_(least, lane.pull[:, None])
    lane.offsets = torch.clamp(moved, lower, 1 + lower, out=moved)
