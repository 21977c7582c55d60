"""Choosing the channels to remove."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from compresslens.pruning.channel_groups import Group

Kind = Literal["parameters", "macs"]
Removal = tuple[str, bool, list[int]]
"""As torch-pruning keeps them: root layer of a group, whether its outputs are meant (always), channels."""

EXCHANGED = 3


def choose(
    groups: Sequence[Group],
    kind: Kind,
    saving: float,
    slack: float,
    scope: Literal["global", "layer"] = "global",
    round_to: int = 1,
    least: Mapping[str, int] | None = None,
) -> tuple[list[Removal], float]:
    """Removes the least important channels until enough is saved.

    Blocks of channels are gone through in the order of their importance: over all groups at once, or, with scope
    "layer", so that all groups lose equal shares. One that would save too much, or leave a layer too narrow, closes
    its group, and the others go on. If that still misses the saving, because the blocks are large, up to three blocks
    of one group are exchanged for those of others.

    Not `torch_pruning.BasePruner`: that takes a ratio of channels instead of a cost, leaves a layer whole if all its
    channels are below the threshold, and can only be asked by cutting a copy of the network.

    Args:
        groups: from `channel_groups.read_groups`; their costs are narrowed.
        kind: what is saved.
        saving: how much of it.
        slack: how much more or less will do; less only where more is not possible.
        scope: see above.
        round_to: widths of the groups become multiples of this; what is no multiple at first counts, too.
        least: channels that must stay of a group, by its root; at least one of every layer stays anyway.

    Returns:
        What to remove (nothing: no entry), and what it saves; less than asked for if that is not possible.
    """
    least = least or {}
    stacks = [_Stack(group, _blocks(group, scope, round_to), kind, least.get(group.root, 1)) for group in groups]
    saved, _ = _take(stacks, saving, saving + slack)
    if saved < saving - slack:
        saved += _exchange(stacks, saving - slack - saved, saving + slack - saved)
    return [(stack.group.root, True, stack.channels()) for stack in stacks if stack.taken], saved


@dataclass(frozen=True)
class Block:
    """Channels of one group that go together.

    Attributes:
        price: the least goes first.
        channels: of the group, ascending.
    """

    price: float
    channels: list[int]


class _Stack:
    """The blocks of one group, of which the first are taken away.

    Attributes:
        group: whose they are.
        taken: how many.
    """

    def __init__(self, group: Group, blocks: list[Block], kind: Kind, least: int) -> None:
        self.group = group
        self.taken = 0
        self._blocks = blocks
        self._kind = kind
        self._least = least
        # each layer once, though it may be narrowed on two sides
        self._costs = list({id(effect.cost): effect.cost for effect in group.effects}.values())

    @property
    def price(self) -> float:
        """Of the next block."""
        return self._blocks[self.taken].price if self.taken < len(self._blocks) else math.inf

    def channels(self) -> list[int]:
        """All that are taken, ascending."""
        return sorted(channel for block in self._blocks[: self.taken] for channel in block.channels)

    def take(self, most: float = math.inf) -> float | None:
        """Takes the next block and returns what that saves; None if that is more than `most`, or not possible."""
        if self.taken == len(self._blocks):
            return None
        block = self._blocks[self.taken]
        if self.group.size - len(self.channels()) - len(block.channels) < self._least:
            return None
        saved = self._narrow(block, 1)
        if saved > most or any(min(cost.inputs, cost.outputs) < 1 for cost in self._costs):
            self._narrow(block, -1)
            return None
        self.taken += 1
        return saved

    def give_back(self) -> float:
        """Gives the block that was taken last back, and returns what that costs."""
        self.taken -= 1
        return -self._narrow(self._blocks[self.taken], -1)

    def _narrow(self, block: Block, sign: int) -> float:
        before = sum(getattr(cost, self._kind)() for cost in self._costs)
        for effect in self.group.effects:
            effect.cost.narrow(effect.side, sign * sum(effect.counts[channel] for channel in block.channels))
        return before - sum(getattr(cost, self._kind)() for cost in self._costs)


def _take(stacks: Sequence[_Stack], enough: float, most: float) -> tuple[float, list[_Stack]]:
    """Takes blocks, cheapest first, until enough is saved; what would save more than the most closes its stack.

    Returns:
        What is saved, and from which stack each block was.
    """
    prices = [(stack.price, number) for number, stack in enumerate(stacks)]
    heapq.heapify(prices)
    saved, order = 0.0, []
    while prices and saved < enough:
        _, number = heapq.heappop(prices)
        gain = stacks[number].take(most - saved)
        if gain is not None:
            saved += gain
            order.append(stacks[number])
            heapq.heappush(prices, (stacks[number].price, number))
    return saved, order


def _exchange(stacks: Sequence[_Stack], enough: float, most: float) -> float:
    """Gives up to three blocks of one stack back for blocks of others, so that enough is saved; else changes nothing.

    Returns:
        What more is saved.
    """
    for number in range(1, EXCHANGED + 1):
        for stack in stacks:
            if stack.taken < number:
                continue
            lost = sum(stack.give_back() for _ in range(number))
            saved, order = _take([other for other in stacks if other is not stack], enough + lost, most + lost)
            if saved >= enough + lost:
                return saved - lost
            for other in reversed(order):
                other.give_back()
            for _ in range(number):
                stack.take()
    return 0.0


def _blocks(group: Group, scope: str, round_to: int) -> list[Block]:
    """A group's channels, least important first, cut into blocks that leave multiples of `round_to`."""
    width = group.size // group.parts
    order = group.scores[:width].argsort(stable=True).tolist()
    step = math.lcm(group.parts, round_to) // group.parts
    cuts = list(range(width % step or step, width + 1, step))
    blocks = []
    for begin, end in zip([0, *cuts], cuts, strict=False):
        members = order[begin:end]
        price = float(group.scores[members].mean()) if scope == "global" else end / width
        channels = sorted(member + part * width for member in members for part in range(group.parts))
        blocks.append(Block(price, channels))
    return blocks
