"""How far each layer is reduced."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

from compresslens.errors import UserError
from compresslens.low_rank.uses import Use

TOLERANCE = 0.01
"""How near a target must be met, relative to it."""

Ranks = list[int]


@dataclass(frozen=True)
class Candidate:
    """A layer that may be replaced.

    Attributes:
        layer: the convolution or linear layer.
        method: the functions of its decomposition.
        use: what it has to do for one image.
        shares: for each mode the share of the squared singular values that the first, the first two, ... make up:
            ascending, the last one is 1.
        present: its multiply-accumulate operations now.
    """

    layer: Any
    method: ModuleType
    use: Use
    shares: list[list[float]]
    present: int

    def ranks_at(self, energy: float) -> Ranks:
        """The least ranks that keep a share in [0, 1] of the squared singular values of each mode."""
        return self.method.fit_ranks(self.layer, [rank_at(shares, energy) for shares in self.shares])

    def macs(self, ranks: Ranks) -> int:
        """Multiply-accumulate operations with these ranks: not more than now, for else it is not replaced."""
        return min(self.method.macs(self.layer, ranks, self.use), self.present)


def candidate(layer: Any, method: ModuleType, use: Use) -> Candidate:
    """Looks at a layer's singular values; see :class:`Candidate`."""
    shares = [cumulative_shares(values) for values in method.spectra(layer)]
    return Candidate(layer, method, use, shares, use.outputs * layer.weight[0].numel() * len(layer.weight))


def cumulative_shares(singular: Tensor) -> list[float]:
    """Share of the sum of squares that the first 1, 2, ... values make up (1 throughout if all are zero)."""
    sums = singular.square().cumsum(0)
    return (sums / sums[-1]).tolist() if sums[-1] > 0 else [1.0] * len(sums)


def rank_at(shares: Sequence[float], energy: float) -> int:
    """The least rank, at least 1, whose share is `energy` or more."""
    return min(bisect_left(shares, energy), len(shares) - 1) + 1


def ranks_by_energy(candidates: Sequence[Candidate], energy: float) -> list[Ranks]:
    """Ranks for each layer that keep a share of the squared singular values in each mode."""
    return [candidate.ranks_at(energy) for candidate in candidates]


def ranks_by_macs(candidates: Sequence[Candidate], total: int, target: int) -> list[Ranks]:
    """Ranks for each layer with which the network comes within 1 % of a number of multiply-accumulates.

    They are those of the greatest common energy that stays below the target. Where this is still too far below, single
    ranks are raised, one at a time, where most of the energy is missing.

    Args:
        candidates: the layers that may be replaced.
        total: multiply-accumulates of the whole network now.
        target: what they should be.

    Raises:
        UserError: the target cannot be met; says what can.
    """

    def cost(choice: Sequence[Ranks]) -> int:
        pairs = zip(candidates, choice, strict=True)
        return total - sum(candidate.present - candidate.macs(ranks) for candidate, ranks in pairs)

    def at(number: int) -> list[Ranks]:
        return ranks_by_energy(candidates, energies[number])

    most = (1 + TOLERANCE) * target
    energies = sorted({0.0, *(share for candidate in candidates for shares in candidate.shares for share in shares)})
    if cost(at(0)) > most:
        raise UserError(_unreachable(target, total, f"the fewest that can be reached are {_count(cost(at(0)), total)}"))
    low, high = 0, len(energies)  # the first is within reach, the one at `high` is not, or does not exist
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(at(middle)) <= target else (low, middle)
    choice = at(low)
    while cost(choice) < (1 - TOLERANCE) * target:
        raised = _raise_one(candidates, choice, most - cost(choice))
        if raised is None:
            next_up = cost(at(high)) if high < len(energies) else total
            nearest = f"the nearest that can be reached are {_count(cost(choice), total)} and {_count(next_up, total)}"
            raise UserError(_unreachable(target, total, nearest))
        choice = raised
    return choice


def _raise_one(candidates: Sequence[Candidate], choice: Sequence[Ranks], room: float) -> list[Ranks] | None:
    """Raises one rank by one, where the kept share is least, at no more additional operations than `room`."""
    best, least = None, 2.0
    for number, (candidate, ranks) in enumerate(zip(candidates, choice, strict=True)):
        for mode, shares in enumerate(candidate.shares):
            if shares[ranks[mode] - 1] >= least or ranks[mode] == len(shares):
                continue
            raised = candidate.method.fit_ranks(candidate.layer, [r + (m == mode) for m, r in enumerate(ranks)])
            if 0 < candidate.macs(raised) - candidate.macs(ranks) <= room:
                best, least = [*choice[:number], raised, *choice[number + 1 :]], shares[ranks[mode] - 1]
    return best


def _unreachable(target: int, total: int, reachable: str) -> str:
    return f"the target of {_count(target, total)} multiply-accumulates cannot be met: {reachable}"


def _count(macs: int, total: int) -> str:
    return f"{macs:,} ({macs / total:.1%})"
