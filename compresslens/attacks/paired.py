"""The same images attacked on a network and on its reference, as columns with a value for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compresslens.attacks.carlini_wagner import carlini_wagner_l2
from compresslens.attacks.cost import gradient_seconds, now
from compresslens.attacks.result import NEVER, AttackResult
from compresslens.attacks.victim import Victim, is_right, predict, refinement
from compresslens.samples import MODEL, REFERENCE, Columns


@dataclass(frozen=True)
class Pair:
    """What came of N images.

    Attributes:
        attacked: N bool, those that all networks classify correctly (see `is_right`).
        results: of the attacked images (M), by prefix of the columns: "" for the model, "reference_" for the reference.
        columns: N values each; NaN where the image was not attacked. `cw_attacked`; for each network `cw_success`
            (1 or 0), `cw_l2` (infinite where the attack failed) and `cw_evaluations`; with a reference
            `cw_transferred`; for a converted network `cw_l2_<source>` and `cw_twin_agrees` (with all images).
    """

    attacked: Tensor
    results: dict[str, AttackResult]
    columns: Columns


def attack_pair(
    images: Tensor, labels: Tensor, victims: dict[str, Victim], refine: int | None = None, **options: Any
) -> Pair:
    """The nearest adversarials of all victims for the images that all of them classify correctly.

    All get the same budget of gradient evaluations, or their distances could not be compared.

    Args:
        images: N×C×H×W in [0, 1].
        labels: N int64.
        victims: the model under "" and its reference, if any, under "reference_". The reference comes first in time:
            its adversarials are tried on a converted model.
        refine: see `refinement`.
        options: `evaluations`, `square_queries`, `chunk_size` and `seed` of `Victim.attack`.
    """
    options["refine"] = refinement(refine, victims.values())
    attacked = torch.ones_like(labels, dtype=torch.bool)
    columns: Columns = {}
    for prefix, victim in victims.items():
        attacked &= is_right(victim.network, images, labels)
        if victim.is_artefact:
            agrees = predict(victim.differentiable, images) == predict(victim.network, images)
            columns[f"{prefix}cw_twin_agrees"] = _array(agrees)
    columns["cw_attacked"] = _array(attacked)
    targets = images[attacked], labels[attacked]
    results: dict[str, AttackResult] = {}
    transfer = None
    for prefix in sorted(victims, reverse=True):
        found, sources = victims[prefix].attack(*targets, transfer=transfer, **options)
        results[prefix] = found
        transfer = found.adversarials
        values = {"success": found.success, "l2": found.l2, "evaluations": found.gradient_evaluations}
        values |= {f"l2_{source}": result.l2 for source, result in sources.items()}
        columns |= {f"{prefix}cw_{name}": spread(value, attacked) for name, value in values.items()}
    if REFERENCE in victims:
        theirs = results[REFERENCE]
        fooled = predict(victims[MODEL].network, theirs.adversarials) != targets[1]
        columns["cw_transferred"] = spread(torch.where(theirs.success, fooled.double(), torch.nan), attacked)
    return Pair(attacked, results, columns)


def attack_cost(images: Tensor, labels: Tensor, rows: Tensor, victims: dict[str, Victim], chunk_size: int) -> Columns:
    """What Carlini & Wagner's own attack takes on some of the images.

    Half of them are attacked on one network after the other, the other half in the opposite order: a machine that slows
    down or speeds up meanwhile does so for both.

    Args:
        images: N×C×H×W in [0, 1].
        labels: N int64.
        rows: N bool, which of them to attack.
        victims: as in :func:`attack_pair`; where gradients are taken from a twin, that is what is attacked.
        chunk_size: images at a time.

    Returns:
        For each victim `cw_adam_evaluations`, `cw_adam_first_success` (infinite where it failed), `cw_adam_seconds`
        (the time of a half, divided in proportion to the evaluations) and `cw_network_seconds` (see
        `gradient_seconds`); N values each, NaN where the image was not attacked.
    """
    halves = torch.nonzero(rows)[:, 0].tensor_split(2)
    found: dict[str, list[dict[str, Tensor]]] = {prefix: [] for prefix in victims}
    for half, order in zip(halves, (list(victims), list(victims)[::-1]), strict=True):
        for prefix in order:
            found[prefix].append(_cost(victims[prefix].differentiable, images[half], labels[half], chunk_size))
    return {
        f"{prefix}cw_{name}": spread(torch.cat([part[name] for part in parts]), rows)
        for prefix, parts in found.items()
        for name in parts[0]
    }


def _cost(network: nn.Module, images: Tensor, labels: Tensor, chunk_size: int) -> dict[str, Tensor]:
    """The values of :func:`attack_cost` for a number of images that may be zero."""
    own = gradient_seconds(network, images, labels) if len(images) else 0.0
    began = now(images.device)
    found = carlini_wagner_l2(network, images, labels, solver="adam", chunk_size=chunk_size)
    seconds = now(images.device) - began
    evaluations = found.gradient_evaluations.double()
    return {
        "adam_evaluations": evaluations,
        "adam_first_success": torch.where(found.first_success == NEVER, torch.inf, found.first_success),
        "adam_seconds": seconds * evaluations / evaluations.sum().clamp_min(1),
        "network_seconds": torch.full_like(evaluations, own),
    }


def spread(values: Tensor, rows: Tensor) -> npt.NDArray[np.float64]:
    """M values at the M rows of N that are True; NaN elsewhere."""
    whole = torch.full(rows.shape, torch.nan, dtype=torch.float64)
    whole[rows.cpu()] = values.double().cpu()
    return whole.numpy()


def _array(values: Tensor) -> npt.NDArray[Any]:
    return values.cpu().numpy()
