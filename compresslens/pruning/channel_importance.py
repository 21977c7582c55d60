"""How much each channel of a group matters that can only be removed as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.pruning.criteria import lamp

Importance = Callable[[Any], Tensor | None]
"""From a group of torch-pruning with all its n channels to scores (n), or None if the criterion says nothing of it."""


def channel_importance(criterion: str, seed: int = 0) -> Importance:
    """Ranks the channels of a group; higher is more important.

    A group is everything that must lose the same channels (Fang et al. 2023): the outputs of some layers, the inputs of
    others. What a criterion says of these is averaged, and divided by the mean over the group's channels so that groups
    can be compared. torch-pruning's classes, except where noted.

    * l1, l2: sum of `|w|` or `w²` over the weights that would go;
    * taylor: sum of `|w · g|` (first-order, after Molchanov et al. 2019); needs the gradients in `.grad`;
    * bn_scale: `|γ|` of the batch normalizations (Liu et al. 2017);
    * lamp: the sum of squares divided by that of this channel and all greater ones of the group (after Lee et al. 2021;
      comparable without division by the mean);
    * geometric_median: sum of the Euclidean distances from a layer's filter to its other filters (He et al. 2019,
      equation 4; ours, because torch-pruning takes distances of squares and of input channels, too);
    * random: uniform, by the seed (ours: torch-pruning's draws from the global random state).

    Args:
        criterion: one of `criteria.CHANNEL_CRITERIA`.
        seed: for "random".
    """
    from torch_pruning.pruner import importance

    if criterion in ("l1", "l2"):
        return importance.GroupMagnitudeImportance(p=int(criterion[1]), normalizer=relative)
    if criterion == "taylor":
        return importance.GroupTaylorImportance(normalizer=relative)
    if criterion == "bn_scale":
        return importance.BNScaleImportance(normalizer=relative)
    if criterion == "lamp":
        return importance.GroupMagnitudeImportance(p=2, normalizer=lamp)
    if criterion == "geometric_median":
        return distance_to_others
    generator = torch.Generator("cpu").manual_seed(seed)
    return lambda group: torch.rand(len(group[0].idxs), generator=generator, device="cpu")


def relative(scores: Tensor) -> Tensor:
    """Divided by their mean, unless all are zero."""
    return scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)


@torch.no_grad()
def distance_to_others(group: Any) -> Tensor | None:
    """Distances between the filters (rows of weights O×(I·kh·kw)) of each layer of the group whose outputs would go."""
    size = len(group[0].idxs)
    total, layers = torch.zeros(size, dtype=torch.float64, device="cpu"), 0
    for item in group:
        layer = item.dep.layer
        if not isinstance(layer, nn.Conv2d | nn.Linear) or item.dep.handler.__name__ != "prune_out_channels":
            continue
        filters = layer.weight.detach()[item.idxs].flatten(1).double()
        distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1).cpu()
        total.scatter_add_(0, torch.tensor(item.root_idxs, device="cpu"), distances)
        layers += 1
    return relative(total / layers) if layers else None
