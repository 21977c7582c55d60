"""Which channels of a network can only be removed together: torch-pruning's dependency graph, read once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.pruning.channel_costs import NORMALIZATIONS, LayerCost, Side, is_depthwise, layer_cost
from compresslens.pruning.channel_importance import Importance
from compresslens.pruning.layers import example_image


@dataclass
class Effect:
    """What becomes of one layer when channels of a group are removed.

    Attributes:
        cost: the layer's, shared by all groups that touch it.
        side: what is narrowed.
        counts: by how much, for each channel of the group.
    """

    cost: LayerCost
    side: Side
    counts: list[int]


@dataclass
class Group:
    """Layers that lose the same channels.

    Attributes:
        root: name of the layer whose output channels stand for the group's.
        size: number of channels.
        parts: number of equal parts that must each lose the same channels (grouped convolutions); a divisor of `size`.
        scores: importance of the channels (size), float64; for each part the same.
        effects: on the layers.
    """

    root: str
    size: int
    parts: int
    scores: Tensor
    effects: list[Effect]


def trace(module: nn.Module, image_size: int) -> Any:
    """torch-pruning's dependency graph of a module that takes images 1×3×S×S; within `left_as_found`."""
    from torch_pruning import DependencyGraph

    return DependencyGraph().build_dependency(
        module,
        example_image(module, image_size),
        forward_fn=lambda network, image: network(image),  # it would try to pass a batch image by image otherwise
        verbose=False,
    )


def read_groups(
    graph: Any, importance: Importance, kept: Collection[nn.Module], uses: dict[nn.Module, int]
) -> list[Group]:
    """The groups whose channels may be removed.

    Left out are groups that would narrow the output of a kept layer, those of which the criterion says nothing, and
    those with layers that cannot be narrowed evenly or at all.

    Args:
        graph: from :func:`trace`.
        importance: from `channel_importance`.
        kept: layers whose outputs stay as they are.
        uses: from `layers.uses_per_weight`.

    Raises:
        UserError: a score is not finite.
    """
    costs: dict[Any, LayerCost] = {}
    groups = []
    for items in graph.get_all_groups(ignored_layers=list(kept), root_module_types=[nn.Conv2d, nn.Linear]):
        size, parts = len(items[0].idxs), _parts(items)
        effects = _effects(items, size, uses, costs)
        if parts is None or effects is None:
            continue
        scores = importance(items)
        if scores is None:
            continue
        root = graph._module2name[items[0].dep.layer]
        if not torch.isfinite(scores).all():
            raise UserError(f"the channels of '{root}' cannot be ranked: a score is not finite")
        mean = scores.detach().double().cpu().view(parts, -1).mean(0).repeat(parts)
        groups.append(Group(root, size, parts, mean, effects))
    return groups


def _parts(items: Any) -> int | None:
    """Number of parts that must lose the same channels; None if the group cannot be divided so."""
    size, found = len(items[0].idxs), {1}
    for item in items:
        layer = item.dep.layer
        if is_depthwise(layer):
            if layer.in_channels != layer.out_channels:
                return None
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            width = layer.in_channels if item.dep.handler.__name__ == "prune_in_channels" else layer.out_channels
            if list(item.root_idxs) != list(range(width)) or width != size:
                return None
            found.add(layer.groups)
        elif isinstance(layer, nn.GroupNorm):
            if list(item.root_idxs) != list(range(layer.num_channels)) or layer.num_channels != size:
                return None
            found.add(layer.num_groups)
    parts = max(found)
    return parts if all(parts % number == 0 for number in found) and size % parts == 0 else None


def _effects(items: Any, size: int, uses: dict[nn.Module, int], costs: dict[Any, LayerCost]) -> list[Effect] | None:
    """What removing channels does to the layers; None if there is one whose cost is not known."""
    from torch_pruning import ops

    effects = []
    for item in items:
        layer, node = item.dep.layer, item.dep.target
        if node.type == ops.OPTYPE.PRELU and layer.num_parameters == 1:
            continue
        if not isinstance(layer, nn.Parameter) and not list(layer.parameters(recurse=False)):
            continue  # operations between layers; normalizations without parameters
        if layer not in costs:
            cost = layer_cost(layer, uses.get(layer, 0), node.pruning_dim)
            if cost is None:
                return None
            costs[layer] = cost
        counts = [0] * size
        for index in item.root_idxs:
            if index is None:
                return None
            counts[index] += 1
        effects.append(Effect(costs[layer], _side(item), counts))
    return effects


def _side(item: Any) -> Side:
    layer = item.dep.layer
    if is_depthwise(layer) or isinstance(layer, (nn.Parameter, *NORMALIZATIONS)):
        return "both"
    return "inputs" if item.dep.handler.__name__ == "prune_in_channels" else "outputs"
