"""Replaces layers of a network by low-rank ones, and remembers how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from compresslens.errors import UserError
from compresslens.low_rank.ranks import candidate, ranks_by_energy, ranks_by_macs
from compresslens.low_rank.selection import (
    Method,
    backbone_of,
    check_method,
    decomposition,
    method_for,
    obstacle,
    select_layers,
)
from compresslens.low_rank.uses import measure_uses
from compresslens.networks.changes import Change, record_change
from compresslens.networks.taps import find_layer

Plan = dict[str, dict[str, Any]]
"""Name of each layer to replace, relative to the backbone: `{"method": ..., "ranks": [...]}`."""


def factorize(
    network: nn.Module,
    method: Method = "tucker",
    *,
    energy: float | None = None,
    macs: float | None = None,
    image_size: int,
    keep: Sequence[str] = (),
    layers: Sequence[str] | None = None,
) -> None:
    """Replaces layers by sequences of cheaper ones, in place, and records the change.

    A layer is replaced only where that saves multiply-accumulates. The new layers have its device, data type and mode,
    and are frozen if it was; their values are computed in float64. Grouped convolutions are never replaced.

    Args:
        network: maps images N×3×S×S to logits.
        method: for kernels larger than 1×1: "tucker", "spatial_svd" or "cp". All others get plain SVD.
        energy: share in (0, 1] of the squared singular values of each mode that is kept; 1 leaves the network as it is.
        macs: multiply-accumulates of the whole network for one image, to be met within 1 %: up to 1, a share of what
            they are now; above, their number. Exactly one of `energy` and `macs` must be given.
        image_size: S.
        keep: names of layers, or of modules with layers in them, to leave as they are.
        layers: names of layers or modules to factorize; None: all but the first convolution and the classifier.

    Raises:
        UserError: a setting makes no sense, a name is unknown, a layer that is named cannot be factorized, or the
            target cannot be met.
    """
    plan = plan_factorization(
        network, method, energy=energy, macs=macs, image_size=image_size, keep=keep, layers=layers
    )
    apply_plan(network, plan)


def plan_factorization(
    network: nn.Module,
    method: Method = "tucker",
    *,
    energy: float | None = None,
    macs: float | None = None,
    image_size: int,
    keep: Sequence[str] = (),
    layers: Sequence[str] | None = None,
) -> Plan:
    """Decides what :func:`factorize` does, and leaves the network as it was."""
    check_settings(method, energy, macs)
    uses, total = measure_uses(network, image_size)
    target = None if macs is None else round(macs * total if macs <= 1 else macs)
    if target is not None and target > total:
        raise UserError(f"macs is {target:,}, but the network needs no more than {total:,}: ask for less")
    selected = select_layers(network, uses, keep, layers)
    if energy == 1 or target == total:
        return {}
    methods = {name: method_for(layer, method) for name, layer in selected.items()}
    candidates = [candidate(layer, decomposition(methods[name]), uses[layer]) for name, layer in selected.items()]
    if target is None:
        assert energy is not None
        choice = ranks_by_energy(candidates, energy)
    else:
        choice = ranks_by_macs(candidates, total, target)
    return {
        name: {"method": methods[name], "ranks": ranks}
        for name, one, ranks in zip(selected, candidates, choice, strict=True)
        if one.macs(ranks) < one.present
    }


def apply_plan(network: nn.Module, plan: Plan) -> None:
    """Replaces the layers of a plan, in place, and records the change if there is any."""
    for name, entry in plan.items():
        layer = find_layer(network, name)
        _replace(network, name, decomposition(entry["method"]).decompose(layer, entry["ranks"]))
    if plan:
        record_change(network, {"kind": "factorize", "layers": plan})


def rebuild(network: nn.Module, change: Change) -> None:
    """Gives a network the structure of one that was factorized, in place, and records the change.

    The weights of the new layers are zero until others are loaded.

    Args:
        network: as it was before it was factorized.
        change: what :func:`factorize` recorded.

    Raises:
        UserError: the change does not fit the network.
    """
    layers = change.get("layers", {})
    for name, entry in layers.items():
        _check_fits(find_layer(network, name), name, entry)
    for name, entry in layers.items():
        _replace(network, name, decomposition(entry["method"]).structure(find_layer(network, name), entry["ranks"]))
    record_change(network, change)


def check_settings(method: str, energy: float | None, macs: float | None) -> None:
    """Raises UserError for settings that make no sense by themselves."""
    check_method(method)
    if (energy is None) == (macs is None):
        raise UserError("give either energy or macs, and not both")
    if energy is not None and not 0 < energy <= 1:
        raise UserError(f"energy is {energy}: it must be above 0 and at most 1")
    if macs is not None and not macs > 0:
        raise UserError(f"macs is {macs}: it must be positive, a share of the network's up to 1, or their number")


def _check_fits(layer: Any, name: str, entry: Mapping[str, Any]) -> None:
    method, ranks = entry["method"], entry["ranks"]
    decomposition(method)
    reason = obstacle(layer)
    if reason is None and (method == "svd") != (method_for(layer, "tucker") == "svd"):
        reason = f"cannot be factorized by {method}"
    elif reason is None and (len(ranks) != (2 if method == "tucker" else 1) or min(ranks) < 1):
        reason = f"cannot be factorized by {method} with ranks {ranks}"
    if reason is not None:
        raise UserError(f"the checkpoint's network was factorized in another place: '{name}' {reason}")


def _replace(network: nn.Module, name: str, pieces: nn.Sequential) -> None:
    """Puts the pieces where the layer of that name was."""
    parent, _, own = name.rpartition(".")
    module = find_layer(network, parent) if parent else backbone_of(network)
    module._modules[own] = pieces
