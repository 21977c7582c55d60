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
from compresslens.attacks.search import Search

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
class Lanes:
    """State of the rows: the image of each, the class it is driven to, where it stands.

    Attributes:
        samples: M, the image.
        against: M, the class.
        images: M×D.
        offsets: M×D, perturbation.
        pull: M, share of the tangential step.
        normals: M×D, running mean of the normals to the boundary, not yet divided by its weights' sum.
        reached: M, least distance of an adversarial point of this lane.
    """

    samples: Tensor
    against: Tensor
    images: Tensor
    offsets: Tensor
    pull: Tensor
    normals: Tensor
    reached: Tensor

    def take(self, rows: Tensor) -> Lanes:
        """Some of the lanes."""
        return Lanes(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


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
    lanes, left, step = against.shape[1], evaluations - spent, 0
    state = _start(search, against)
    for steps, going_on in STAGES[lanes]:
        for _ in range(steps):
            _step(search, state, step, OVERSHOOT + deep * max(0.0, 1 - step / DEEP_STEPS))
            step += 1
        left -= lanes * steps
        nearest = state.reached.view(-1, lanes).argsort(dim=1, stable=True)[:, :going_on]
        first = torch.arange(len(search), device=nearest.device)[:, None] * lanes
        state, lanes = state.take((first + nearest).flatten()), going_on
    for _ in range(left):
        _step(search, state, step, OVERSHOOT + deep * max(0.0, 1 - step / DEEP_STEPS))
        step += 1


def _start(search: Search, against: Tensor) -> Lanes:
    count, lanes = against.shape
    samples = torch.arange(count, device=against.device).repeat_interleave(lanes)
    zeros = search.images.new_zeros(len(samples), search.images.shape[1])
    return Lanes(
        samples=samples,
        against=against.reshape(-1),
        images=search.images[samples],
        offsets=zeros,
        pull=search.images.new_full((len(samples),), PULL[1]),
        normals=zeros.clone(),
        reached=search.images.new_full((len(samples),), torch.inf),
    )


def _choose_classes(search: Search, evaluations: int) -> tuple[Tensor, int]:
    """N×K classes to go for, nearest first, and the evaluations that the choice took."""
    everything = torch.arange(len(search), device=search.images.device)
    if search.targeted:
        return search.labels[:, None], 0
    with torch.no_grad():
        logits = search.network(search.images.view(-1, *search.shape)).float()
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


def _step(search: Search, lanes: Lanes, step: int, overshoot: float) -> None:
    """Evaluates the lanes where they stand, and moves them; beyond the boundary by a share of the margin."""
    images, offsets = lanes.images, lanes.offsets
    against = None if search.targeted else lanes.against
    length = offsets.norm(dim=1)
    constraint, gradients, adversarial = search.evaluate(lanes.samples, images + offsets, length, against)
    lanes.reached = torch.where(adversarial, torch.minimum(lanes.reached, length), lanes.reached)
    lanes.normals.mul_(MOMENTUM).sub_(gradients, alpha=1 - MOMENTUM)
    normals = lanes.normals / (1 - MOMENTUM ** (step + 1))
    squared = dot(normals, normals)
    lanes.pull = (lanes.pull * torch.where(adversarial, GROW, SHRINK)).clamp(PULL[0], PULL[2])

    needed = constraint + overshoot * constraint.abs() + BEYOND * length * squared.sqrt()
    # adversarial by way of another class than this lane's: no need to go on towards it
    needed = torch.where(adversarial, needed.clamp_max(0), needed)
    lower = -images
    upper = 1 + lower
    least = least_norm(normals, dot(normals, offsets) + needed, lower, upper, squared)
    # a negative need is a step back to the boundary
    sign = torch.where(needed >= 0, 1.0, -1.0).to(needed)
    step_onto = least_norm(normals * sign[:, None], needed.abs(), lower - offsets, upper - offsets, squared)
    onto = offsets + step_onto
    moved = torch.lerp(onto, least, lanes.pull[:, None])
    lanes.offsets = torch.clamp(moved, lower, upper, out=moved)
