"""What ships is what is attacked: a converted INT8 network, which has no gradient.

An attack that needs gradients stands still on rounded activations and reports a robustness that is not there. So
adversarials are looked for where there are gradients (in the twin with fake quantizers, straight-through, and in the
float network that it came from), and the artefact is asked by forward passes alone how far along each perturbation it
holds out. Each image's nearest adversarial of the artefact counts (Athalye et al. 2018, arXiv:1802.00420, on gradients
that are shattered, and on what to put in their place).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.attacks.carlini_wagner import carlini_wagner_l2
from compresslens.attacks.peers import torchattacks_attack
from compresslens.attacks.ray import ray_search
from compresslens.attacks.refine import refine as refine_search
from compresslens.attacks.result import NEVER, AttackResult, least_distance
from compresslens.attacks.search import Search
from compresslens.networks.modes import input_gradients

# Of a perturbation that fools the twin, which computes nearly the same: most fool the artefact between .97 and 1.03.
NEAR = (0.9, 0.97, 1.0, 1.01, 1.03, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
NEAR_STEPS = 6
FURTHER = (1.0, 1.01)  # factors of the nearest perturbations that the refinement may start from
SQUARE_FURTHER = 1.1  # of the median distance that was found without Square
HOPELESS = 0.1  # of the box's diagonal: Square's radius where nothing was found without it


@dataclass(frozen=True)
class ArtefactAttack:
    """Adversarials of an artefact.

    Attributes:
        nearest: each image's nearest; distances and success are the artefact's, gradient evaluations the twin's.
        sources: by where the perturbation came from, all verified on the artefact: "straight_through" (the twin),
            "transfer" (the float network), "refinement" (steps in the twin from the nearer of the two), "square"
            (black box).
    """

    nearest: AttackResult
    sources: dict[str, AttackResult]


def attack_artefact(
    artefact: nn.Module,
    twin: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    transfer: Tensor | None = None,
    evaluations: int = 40,
    refine: int = 60,
    square_queries: int = 0,
    chunk_size: int = 64,
    seed: int = 0,
) -> ArtefactAttack:
    """The least perturbations that fool a network without gradients.

    Args:
        artefact: what is judged, from pixels to logits; forward passes only.
        twin: computes nearly the same, and has gradients. Where it is wrong and the artefact is right, its gradient at
            the image is searched along.
        images: N×C×H×W in [0, 1].
        labels: N int64.
        transfer: N×C×H×W, adversarials of the float network (the image where there is none), or None.
        evaluations: gradient evaluations per image in the twin.
        refine: the same for the refinement; 0: none.
        square_queries: forward passes per image of the black-box attack Square (Andriushchenko et al. 2020) on the
            artefact, within 1.1 of the median distance found by the others; 0: none. It is torchattacks', which cannot
            do every size of images. Unlike the others, it depends on which images a call has.
        chunk_size: images at a time.
        seed: of Square.

    Raises:
        ValueError: as `carlini_wagner_l2`.
        UserError: Square cannot do images of that size.
    """
    with torch.inference_mode(False):
        images, labels = (value.clone() if value.is_inference() else value for value in (images, labels))
        sources: dict[str, AttackResult] = {}
        near: dict[str, Any] = {"factors": NEAR, "steps": NEAR_STEPS, "chunk_size": chunk_size}
        white = carlini_wagner_l2(twin, images, labels, evaluations=evaluations, chunk_size=chunk_size)
        offsets, spent = _offsets(twin, images, labels, white)
        found = ray_search(artefact, images, labels, offsets, **near)
        sources["straight_through"] = _counted(found, spent, white.first_success)
        if transfer is not None:
            sources["transfer"] = ray_search(artefact, images, labels, transfer - images, chunk_size=chunk_size)
        if refine and len(images):
            starts = [white.adversarials, least_distance(*sources.values()).adversarials]
            offsets, spent, first = _refined(twin, images, labels, starts, refine, chunk_size)
            found = ray_search(artefact, images, labels, offsets, **near)
            sources["refinement"] = _counted(found, spent, first)
        if square_queries:
            radius = _radius(least_distance(*sources.values()).l2, images.shape[1:].numel())
            black = torchattacks_attack(
                artefact, images, labels, "Square", eps=radius, n_queries=square_queries, seed=seed
            )
            sources["square"] = ray_search(artefact, images, labels, black.adversarials - images, chunk_size=chunk_size)
    return ArtefactAttack(least_distance(*sources.values()), sources)


def _offsets(twin: nn.Module, images: Tensor, labels: Tensor, white: AttackResult) -> tuple[Tensor, Tensor]:
    """Perturbations of the twin's adversarials, and the gradient evaluations that they took.

    Where the twin is wrong without any, the way down its margin takes their place, as long as linearization would have
    it from the twin's boundary: the artefact's cannot be far.
    """
    offsets, spent = white.adversarials - images, white.gradient_evaluations.clone()
    wrong = torch.nonzero(white.l2 == 0)[:, 0]
    if len(wrong):
        with input_gradients(twin):
            search = Search(twin, images[wrong], labels[wrong])
            everything = torch.arange(len(wrong), device=wrong.device)
            margins, gradients, _ = search.evaluate(everything, search.images, torch.zeros_like(search.distance))
        slopes = gradients.square().sum(1).clamp_min(torch.finfo(gradients.dtype).tiny)
        offsets[wrong] = (-(margins.abs() / slopes)[:, None] * gradients).view(-1, *images.shape[1:])
        spent[wrong] += search.evaluations
    return offsets, spent


def _refined(
    twin: nn.Module, images: Tensor, labels: Tensor, starts: list[Tensor], steps: int, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Perturbations after the refinement in the twin from the nearest of some adversarials.

    Returns:
        N×C×H×W perturbations (zero where the twin has no adversarial among the starts), the gradient evaluations, and
        those until the first adversarial: 0 where a start is one.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in torch.arange(len(images), device=images.device).split(chunk_size):
        with input_gradients(twin):
            search = Search(twin, images[rows], labels[rows])
            for start in starts:
                offsets = (start[rows] - images[rows]).flatten(1)
                for factor in FURTHER:
                    points = torch.clamp(search.images + factor * offsets, 0, 1)
                    search.look(points, (points - search.images).norm(dim=1))
            refine_search(search, steps)
        offsets = (search.best - search.images).view(-1, *images.shape[1:])
        parts.append((offsets, search.evaluations, search.first_success))
    offsets, spent, first = (torch.cat(values) for values in zip(*parts, strict=True))
    return offsets, spent, first


def _counted(found: AttackResult, spent: Tensor, first: Tensor) -> AttackResult:
    """The result of a search by forward passes with what its directions took."""
    return replace(found, gradient_evaluations=spent, first_success=torch.where(found.success, first, NEVER))


def _radius(l2: Tensor, pixels: int) -> float:
    """What Square may spend: a little more than the others, or much where they found nothing."""
    finite = l2[torch.isfinite(l2)]
    return SQUARE_FURTHER * float(finite.median()) if len(finite) else HOPELESS * math.sqrt(pixels)
