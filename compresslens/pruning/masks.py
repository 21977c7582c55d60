"""Which single weights stay. Masks are boolean tensors of the weights' shapes, on the CPU; True: the weight stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Masks = dict[str, Tensor]
PackedMask = dict[str, Any]


def nonzero_masks(weights: Mapping[str, Tensor]) -> Masks:
    """What earlier pruning has left. A layer of nothing but zeros was initialised so, not pruned: all of it stays."""
    masks = {name: (weight.detach() != 0).cpu() for name, weight in weights.items()}
    return {name: mask if mask.any() else torch.ones_like(mask) for name, mask in masks.items()}


def global_masks(scores: Mapping[str, Tensor], alive: Masks, costs: Mapping[str, int], amount: int) -> Masks:
    """Prunes the weights of least score per cost, over all layers by one threshold.

    With equal costs exactly `amount` weights are pruned; otherwise as few as make up the amount, least score per cost
    first: removing those loses least of the score's sum for what it saves. Of equals the first are pruned.

    Args:
        scores: by layer, finite, none negative.
        alive: what has been pruned before stays pruned, and counts.
        costs: of one weight of each layer: 1 each to count weights, its uses to count multiply-accumulates.
        amount: cost that has to be pruned in total; at most the cost of all weights.
    """
    ranks = {name: _rank(score / max(costs[name], 1), alive[name]) for name, score in scores.items()}
    if len(set(costs.values())) == 1:
        number = -(-amount // next(iter(costs.values())))
        pruned = _smallest(torch.cat(list(ranks.values())), number)
    else:
        pruned = _cheapest([(rank, costs[name]) for name, rank in ranks.items()], amount)
    parts = pruned.split([len(rank) for rank in ranks.values()])
    return {name: ~(part.reshape(scores[name].shape)) & alive[name] for name, part in zip(ranks, parts, strict=True)}


def layer_masks(scores: Mapping[str, Tensor], alive: Masks, costs: Mapping[str, int], amount: int) -> Masks:
    """Prunes the same share of every layer, the weights of least score first; otherwise like :func:`global_masks`.

    A layer that has been pruned further before stays as it is, and the others share what is left to be done.
    """
    names = list(scores)
    before = [int((~alive[name]).sum()) for name in names]
    sizes = [scores[name].numel() for name in names]
    numbers = _equal_shares(sizes, before, [costs[name] for name in names], amount)
    masks = {}
    for name, number in zip(names, numbers, strict=True):
        pruned = _smallest(_rank(scores[name], alive[name]), number)
        masks[name] = ~pruned.reshape(scores[name].shape)
    return masks


def pattern_masks(scores: Mapping[str, Tensor], alive: Masks, stay: int, of: int) -> Masks:
    """N:M sparsity: of every `of` weights in a row along the input channels the `stay` of greatest score stay.

    Rows are taken for each output channel and kernel position by itself, which is how hardware for 2:4 sparsity reads
    them. What has been pruned before stays pruned, so some rows may keep fewer.

    Args:
        scores: O×I or O×I×kh×kw with I a multiple of `of` (see :func:`fits_pattern`).
        alive: masks of before.
        stay: N.
        of: M.
    """
    masks = {}
    for name, score in scores.items():
        rank = _rank(score, alive[name]).reshape(score.shape).movedim(1, -1)
        rows = rank.reshape(-1, of)
        order = rows.argsort(dim=1, stable=True)
        pruned = torch.zeros_like(rows, dtype=torch.bool)
        pruned.scatter_(1, order[:, : of - stay], torch.ones_like(pruned))
        pruned |= rows < 0
        masks[name] = (~pruned).reshape(rank.shape).movedim(-1, 1).contiguous()
    return masks


def fits_pattern(weight: Tensor, of: int) -> bool:
    """Whether its input channels (of one group) can be divided into rows of `of`."""
    return weight.shape[1] % of == 0


def pruned_cost(masks: Masks, costs: Mapping[str, int]) -> int:
    """Summed cost of the weights that do not stay."""
    return sum(int((~mask).sum()) * costs[name] for name, mask in masks.items())


# In checkpoints and on other ranks ----------------------------------------------------------------------------------


def pack(mask: Tensor) -> PackedMask:
    """One bit per weight: `{"shape": [...], "bits": uint8}`, the first weight in the lowest bit of the first byte."""
    flat = mask.flatten().to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8)
    return {"shape": list(mask.shape), "bits": (flat << _SHIFTS).sum(1, dtype=torch.uint8)}


def unpack(packed: PackedMask) -> Tensor:
    """The mask that was packed."""
    bits = (packed["bits"].cpu()[:, None] >> _SHIFTS) & 1
    shape = torch.Size(packed["shape"])
    return bits.flatten()[: shape.numel()].bool().reshape(shape)


_SHIFTS = torch.arange(8, dtype=torch.uint8, device="cpu")


# On the weights -----------------------------------------------------------------------------------------------------


class MaskedWeights:
    """Sets weights to zero, again and again.

    By bits, because a product with zero is minus zero where the weight is negative (which does not compress), and not
    zero where it is infinite.

    Args:
        weights: by layer.
        masks: of some of them, of the same shapes.
    """

    def __init__(self, weights: Mapping[str, Tensor], masks: Masks) -> None:
        self._pairs = [(weights[name], _bits(weights[name], mask)) for name, mask in masks.items() if not mask.all()]

    @torch.no_grad()
    def apply(self) -> None:
        """Makes the weights that do not stay exactly zero, in place."""
        for weight, bits in self._pairs:
            weight.detach().view(bits.dtype).bitwise_and_(bits)


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(weight: Tensor, mask: Tensor) -> Tensor:
    """All ones where the weight stays, in the weight's own memory layout."""
    bits = torch.empty_like(weight, dtype=_INTEGERS[weight.element_size()])
    return bits.copy_(-mask.to(bits))


def _rank(score: Tensor, alive: Tensor) -> Tensor:
    """The scores, flat, with those of pruned weights below all others."""
    return torch.where(alive, score, -1.0).flatten()


def _smallest(values: Tensor, number: int) -> Tensor:
    """Marks the `number` smallest values, of equals the first (bool)."""
    if number <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    # five times as fast as kthvalue
    threshold = float(np.partition(values.numpy(), number - 1)[number - 1])
    marked = values < threshold
    equal = (values == threshold).nonzero().flatten()
    marked[equal[: number - int(marked.sum())]] = True
    return marked


def _cheapest(layers: list[tuple[Tensor, int]], amount: int) -> Tensor:
    """Marks the smallest values, of equals the first, as few as cost the amount together.

    Args:
        layers: values (flat; none negative but -1), and what each of them costs.
        amount: at most the sum of the costs.

    Returns:
        Marks for the values of all layers, one layer after the other (bool).
    """
    values = torch.cat([layer for layer, _ in layers]).double()
    if amount <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    # Read as whole numbers, the bits of floating-point numbers are in the same order: the threshold is found exactly.
    keys = [(np.sort(layer.double().numpy()).view(np.int64), cost) for layer, cost in layers]
    low, high = min(int(key[0]) for key, _ in keys), max(int(key[-1]) for key, _ in keys)
    while low < high:
        middle = (low + high) // 2
        price = sum(cost * int(np.searchsorted(key, middle, side="right")) for key, cost in keys)
        low, high = (low, middle) if price >= amount else (middle + 1, high)
    threshold = float(np.int64(low).view(np.float64))
    marked = values < threshold
    missing = amount - sum(cost * int(np.searchsorted(key, low)) for key, cost in keys)
    costs = torch.cat([torch.full((len(layer),), cost, device="cpu") for layer, cost in layers])
    equal = (values == threshold).nonzero().flatten()
    marked[equal[: int(torch.searchsorted(costs[equal].cumsum(0), missing)) + 1]] = True
    return marked


def _equal_shares(sizes: list[int], before: list[int], costs: list[int], amount: int) -> list[int]:
    """How many weights of each layer are pruned if all are pruned to the same share, or stay as far as they were."""

    def numbers(share: float) -> list[float]:
        return [max(share * size, least) for size, least in zip(sizes, before, strict=True)]

    def cost(share: float) -> float:
        return sum(number * price for number, price in zip(numbers(share), costs, strict=True))

    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < amount else (low, middle)
    exact = numbers(high)
    whole = [int(number) for number in exact]
    # What rounding has left goes to the layers that lost most by it, so that the sum is right.
    missing = round(sum(exact)) - sum(whole)
    by_loss = sorted(range(len(sizes)), key=lambda layer: (whole[layer] - exact[layer], layer))
    for layer in by_loss[:missing]:
        whole[layer] += 1
    return whole
