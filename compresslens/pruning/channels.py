"""Removing channels for good: the network becomes narrower, smaller and faster."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.footprint import count_macs, count_parameters
from compresslens.networks.changes import Change, record_change
from compresslens.networks.names import first_line
from compresslens.networks.taps import classifier_name, find_layer, unwrap
from compresslens.pruning.channel_groups import read_groups, trace
from compresslens.pruning.channel_importance import channel_importance
from compresslens.pruning.channel_selection import Kind, Removal, choose
from compresslens.pruning.layers import kept_modules, uses_per_weight, weight_layers
from compresslens.pruning.untouched import left_as_found
from compresslens.training import dry_run


def select_channels(
    network: nn.Module,
    image_size: int,
    kind: Kind,
    wanted: float,
    slack: float = 0.0,
    *,
    criterion: str = "l2",
    gradients: Mapping[str, Tensor] | None = None,
    scope: Literal["global", "layer"] = "global",
    keep: Iterable[str] = (),
    keep_first: bool = True,
    round_to: int = 1,
    least: Mapping[str, int] | None = None,
    seed: int = 0,
) -> tuple[list[Removal], float]:
    """Which channels to remove so that a network costs what is wanted, or a little less.

    The network is left as it was.

    Args:
        network: takes images 1×3×S×S.
        image_size: S.
        kind: what counts, "parameters" or "macs".
        wanted: how much of it is to stay.
        slack: how much less will do.
        criterion: one of `criteria.CHANNEL_CRITERIA`.
        gradients: for "taylor": from `gradients.loss_gradients`.
        scope: "global": the least important channels of the network; "layer": the same share of all groups of layers.
        keep: names of layers or blocks whose outputs stay as they are; the classifier's always do.
        keep_first: the first convolution's do, too.
        round_to: the widths become multiples of this.
        least: channels that must stay of a layer, by its name (see :func:`least_widths`).
        seed: for "random".

    Returns:
        What to remove, and what the network would cost then (more than wanted if that cannot be reached).

    Raises:
        UserError: a layer to keep is not there; the network cannot be traced.
    """
    root = _pruned_module(network)
    kept = kept_modules(network, keep, keep_first) | {find_layer(network, classifier_name(network))}
    uses = uses_per_weight(network, image_size)
    total = count_macs(network, image_size) if kind == "macs" else count_parameters(network)[0]
    named = dict(network.named_parameters())
    with left_as_found(network):
        for name, gradient in (gradients or {}).items():
            named[name].grad = gradient
        groups = read_groups(_trace(root, network, image_size), channel_importance(criterion, seed), kept, uses)
    if not groups:
        raise UserError(f"no channels of {_name(network)} can be removed by the criterion {criterion} with these kept")
    removals, saved = choose(groups, kind, total - wanted, slack, scope, round_to, least)
    return removals, total - saved


def remove_channels(network: nn.Module, image_size: int, removals: Sequence[Removal]) -> None:
    """Removes channels from a network, in place, and records that; other parameters stay the same objects.

    Train flags, `requires_grad` and memory format stay as they were; parameters that were cut have no gradient.

    Args:
        network: takes images 1×3×S×S.
        image_size: S.
        removals: from :func:`select_channels` for this network.

    Raises:
        UserError: they do not fit the network, or it does not work any more.
    """
    if not removals:
        return
    root = _pruned_module(network)
    history = [[name, outputs, list(channels)] for name, outputs, channels in removals]
    widths = {name: len(layer.weight) for name, layer in weight_layers(root).items()}
    for name, _, channels in removals:
        if not all(0 <= channel < widths.get(name, 0) for channel in channels):
            raise UserError(f"channels cannot be removed from {_name(network)}: '{name}' has no such channels")
    try:
        with left_as_found(network):
            _trace(root, network, image_size).load_pruning_history(copy.deepcopy(history))
        dry_run(network, image_size)
    except (AssertionError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"channels cannot be removed from {_name(network)}: {first_line(error)}") from error
    record_change(network, {"kind": "remove_channels", "image_size": image_size, "history": history})


def replay(network: nn.Module, change: Change) -> None:
    """Makes and records a change that :func:`remove_channels` recorded for a network of the same structure."""
    history = cast(Sequence[Any], change["history"])
    remove_channels(network, change["image_size"], [(name, outputs, channels) for name, outputs, channels in history])


def least_widths(network: nn.Module, share: float) -> dict[str, int]:
    """Channels that must stay of each layer, by the names that :func:`select_channels` goes by.

    Args:
        network: before any channel is removed.
        share: at most this share of a layer's output channels may go.
    """
    widths = {name: len(layer.weight) for name, layer in weight_layers(_pruned_module(network)).items()}
    return {name: max(1, width - int(share * width)) for name, width in widths.items()}


def _pruned_module(network: nn.Module) -> nn.Module:
    """What images have been normalized for: names in the history are relative to it."""
    root = unwrap(network)
    return unwrap(getattr(root, "backbone", root))


def _trace(module: nn.Module, network: nn.Module, image_size: int) -> Any:
    try:
        return trace(module, image_size)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the channels of {_name(network)} cannot be traced: {first_line(error)}") from error


def _name(network: nn.Module) -> str:
    return getattr(unwrap(network), "architecture", type(unwrap(network)).__name__)
