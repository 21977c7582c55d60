"""What a network is to be pruned to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compresslens.errors import UserError

Kind = Literal["sparsity", "parameters", "macs"]

TOLERANCE = 0.01
"""Relative: a target that is not met as closely is an error."""


@dataclass(frozen=True)
class Target:
    """One figure to be met within 1 %.

    Attributes:
        kind: "sparsity": share of the prunable weights that become zero; for channels, share of all parameters that is
            removed. "parameters", "macs": what stays of the whole network's; below 1 a fraction of what the network as
            given has (with its zeros), from 1 on a count. Where single weights are pruned, the parameters that stay
            are those that are not pruned to zero, and only their multiply-accumulates count.
        value: in [0, 1) for a sparsity, positive otherwise.
    """

    kind: Kind
    value: float

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"

    def remaining(self, total: float) -> float:
        """Parameters or MACs that are to stay of the total."""
        if self.kind == "sparsity":
            return (1 - self.value) * total
        return self.value * total if self.value < 1 else self.value


def one_target(sparsity: float | None, parameters: float | None, macs: float | None) -> Target:
    """The target that is given.

    Raises:
        UserError: there is none, more than one, or it is out of range.
    """
    values: dict[Kind, float | None] = {"sparsity": sparsity, "parameters": parameters, "macs": macs}
    given = [Target(kind, value) for kind, value in values.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(map(str, given)) or "none"
        raise UserError(f"pruning needs exactly one target, but there is {found}: set sparsity, parameters or macs")
    target = given[0]
    if target.kind == "sparsity" and not 0 <= target.value < 1:
        raise UserError(f"sparsity is {target.value:g}; it must be in [0, 1)")
    if not 0 <= target.value < float("inf") or (target.kind != "sparsity" and target.value == 0):
        raise UserError(f"{target.kind} is {target.value:g}; give a fraction below 1 or a count")
    return target


def require_met(target: Target, wanted: float, reached: float) -> None:
    """Checks that what can be reached is what is wanted, within 1 %.

    Args:
        target: named in the message.
        wanted: a share of weights for a sparsity, else a count of parameters or MACs.
        reached: in the same unit, the nearest that is possible.

    Raises:
        UserError: it is not; says what is reachable.
    """
    if abs(reached - wanted) > TOLERANCE * abs(wanted):
        figure = f"{reached:.4g}" if target.kind == "sparsity" else f"{reached:,.0f}"
        raise UserError(f"{target} cannot be met within 1 %: the nearest that can be reached is {target.kind} {figure}")
