"""Changes to a network's structure, recorded as plain values, so that a checkpoint can rebuild what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from compresslens.errors import UserError
from compresslens.networks.taps import unwrap

Change = dict[str, Any]
"""`{"kind": ..., ...}`: texts, numbers, lists and dictionaries only, for JSON and `torch.load(weights_only=True)`."""


def changes_of(network: nn.Module) -> list[Change]:
    """What was done to the network's structure since it was created by its name, first things first."""
    return list(getattr(unwrap(network), "changes", []))


def record_change(network: nn.Module, change: Change) -> None:
    """Adds a change that was made to those that the network remembers."""
    root: Any = unwrap(network)
    root.changes = [*changes_of(network), change]


def apply_changes(network: nn.Module, changes: Sequence[Change]) -> None:
    """Makes changes to a network, in place, and records them. The values of the weights are left to whoever loads them.

    Args:
        network: as it was when the first of the changes was made.
        changes: as another network's :func:`changes_of` gave them.

    Raises:
        UserError: a change is unknown, or does not fit the network.
    """
    for change in changes:
        apply_change(network, change)


def apply_change(network: nn.Module, change: Change) -> None:
    """Makes and records one change; see :func:`apply_changes`.

    The kinds are listed here and not looked up by name: a checkpoint must never choose code to run.
    """
    kind = change.get("kind")
    if kind == "remove_channels":
        from compresslens.pruning.channels import replay

        replay(network, change)
    elif kind == "factorize":
        from compresslens.low_rank.factorize import rebuild

        rebuild(network, change)
    elif kind == "fake_quantize":
        from compresslens.quantization.fake_quant import rebuild

        rebuild(network, change)
    elif kind == "learned_steps":
        from compresslens.quantization.learned_steps import rebuild

        rebuild(network, change)
    else:
        raise UserError(f"the network was changed in a way that this version does not know: {kind!r}")
