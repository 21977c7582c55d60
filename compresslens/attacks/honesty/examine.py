"""Runs the attacks that the checks compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compresslens.attacks.artefact import NEAR, NEAR_STEPS, attack_artefact
from compresslens.attacks.carlini_wagner import carlini_wagner_l2
from compresslens.attacks.honesty.check import Check, skipped
from compresslens.attacks.honesty.consistency import (
    ScaledLogits,
    deterministic_check,
    scale_check,
    steps_check,
    unbounded_check,
)
from compresslens.attacks.honesty.gradients import gradient_check, useless_gradients
from compresslens.attacks.honesty.rivals import (
    TRANSFER,
    TRANSFER_TO_ARTEFACT,
    noise_check,
    quartiles,
    rival_check,
    transfer_check,
)
from compresslens.attacks.honesty.rounding import rounding_check
from compresslens.attacks.honesty.runs import gaussian_noise, right_ones, within_radii
from compresslens.attacks.honesty.trace import Trace, best_point_check, descent_check
from compresslens.attacks.ray import ray_search
from compresslens.attacks.result import AttackResult, least_distance
from compresslens.attacks.search import logits_in_chunks
from compresslens.errors import UserError

SCALES = (0.01, 100.0)
DLR_CLASSES = 3  # APGD's loss "dlr" compares with the third largest logit


@torch.inference_mode(False)
@torch.no_grad()
def examine(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    reference: nn.Module | None = None,
    artefact: nn.Module | None = None,
    evaluations: int = 40,
    refine: int = 0,
    directions: int = 4,
    queries: int = 50,
    apgd_steps: int = 10,
    seed: int = 0,
    chunk_size: int = 64,
) -> list[Check]:
    """Checks whether the distances that `carlini_wagner_l2` finds on a network can be believed.

    Where the gradient of a network leads nowhere, an attack fails and the network only looks hard to fool. The checks
    follow Carlini et al. 2019, Athalye et al. 2018 and Pintor et al. 2022; :func:`~compresslens.attacks.honesty.panel`
    sums them up.

    Args:
        network: from pixels to logits; its state is left as it was.
        images: N×C×H×W in [0, 1]; those that network or artefact classify wrongly are left out.
        labels: N int64.
        reference: another network for the same classes, whose adversarials are tried, too.
        artefact: what is deployed in the network's place, computes nearly the same and has no gradient. The distances
            are then those of `attack_artefact`, and noise, Square and rounding are tried on the artefact; the course of
            the attack and APGD are checked on the network, where the gradients come from. Transfer, which is a part of
            that attack, must not beat what the network's gradients find on the artefact by themselves.
        evaluations: budget of the attack, see `carlini_wagner_l2`.
        refine: the same.
        directions: random directions per image.
        queries: of the black-box attack per image and radius.
        apgd_steps: of the attack within a radius.
        seed: of random directions, starts and queries.
        chunk_size: images at a time.

    Returns:
        A check for each question, always the same ones in the same order; empty if the network is right nowhere.

    Raises:
        ValueError: bad images, labels or logits.
    """

    images, labels = right_ones(network, images.clone(), labels.clone(), chunk_size)
    if artefact is not None:
        images, labels = right_ones(artefact, images, labels, chunk_size)
    if len(images) == 0:
        return []

    def attack(target: nn.Module, effort: int = 1, observe: Trace | None = None) -> AttackResult:
        return carlini_wagner_l2(
            target,
            images,
            labels,
            evaluations=effort * evaluations,
            refine=effort * refine,
            chunk_size=chunk_size,
            observe=observe,
        )

    judge, transferred, transfer = artefact or network, None, None
    targets = [network] if artefact is None else [network, artefact]
    first, second = ([logits_in_chunks(target, images, chunk_size) for target in targets] for _ in range(2))
    trace = Trace(images)
    white = alone = final = attack(network, observe=trace)
    if reference is not None:
        transferred = attack(reference).adversarials
        transfer = ray_search(judge, images, labels, transferred - images, chunk_size=chunk_size)
    if artefact is not None:
        options = {"evaluations": evaluations, "refine": refine, "chunk_size": chunk_size}
        final = attack_artefact(artefact, network, images, labels, transfer=transferred, **options).nearest
        offsets = white.adversarials - images
        alone = ray_search(artefact, images, labels, offsets, factors=NEAR, steps=NEAR_STEPS, chunk_size=chunk_size)
    noise = gaussian_noise(judge, images, labels, directions, seed, chunk_size)
    radii = quartiles(least_distance(final, noise).l2)

    def rival(name: str, peer: str, target: nn.Module, ours: AttackResult, *runs: dict[str, Any]) -> Check:
        try:
            found = [within_radii(target, images, labels, peer, radii, seed=seed, **options) for options in runs]
        except UserError as error:  # of this size of images, say: no reason to do without the other checks
            return skipped(name, str(error))
        return rival_check(name, peer, ours, [least_distance(*results) for results in zip(*found, strict=True)], radii)

    # where logits are large, cross-entropy has no gradient left; elsewhere it is the stronger of the two
    losses = ("ce", "dlr") if first[0].shape[1] >= DLR_CLASSES else ("ce",)
    return [
        deterministic_check(torch.cat(first, 1), torch.cat(second, 1)),
        gradient_check(useless_gradients(network, images, labels, chunk_size), trace),
        descent_check(trace),
        best_point_check(trace, white),
        unbounded_check(final),
        noise_check(final, noise),
        rival("black_box", "Square", judge, final, {"n_queries": queries}),
        rival("apgd", "APGD", network, white, *({"steps": apgd_steps, "loss": loss} for loss in losses)),
        transfer_check(alone, transfer, TRANSFER if artefact is None else TRANSFER_TO_ARTEFACT),
        scale_check(white, {factor: attack(ScaledLogits(network, factor)) for factor in SCALES}),
        steps_check(white, attack(network, effort=2)),
        rounding_check(judge, images, labels, final, seed),
    ]
