"""From settings to masks: pruning single weights to a target, at once or in several updates."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.footprint import count_macs, count_parameters
from compresslens.pruning.criteria import check_criterion, weight_scores
from compresslens.pruning.layers import prunable_layers, uses_per_weight, weight_layers, weights_of
from compresslens.pruning.masks import (
    Masks,
    fits_pattern,
    global_masks,
    layer_masks,
    nonzero_masks,
    pattern_masks,
    pruned_cost,
)
from compresslens.pruning.targets import Target, require_met

logger = logging.getLogger(__name__)

Pattern = tuple[int, int]


@dataclass(frozen=True)
class Budget:
    """What a network has to lose.

    Attributes:
        costs: by prunable layer, what one of its weights counts.
        before: cost of those that are zero from the start.
        amount: cost that is pruned in the end, with `before`; 0 for a pattern.
    """

    costs: dict[str, int]
    before: int
    amount: int


@dataclass(frozen=True)
class WeightPruning:
    """Settings of unstructured or N:M pruning.

    Attributes:
        goal: a target, or the pattern (N, M).
        criterion: one of `criteria.WEIGHT_CRITERIA`.
        scope: "global": weights of all layers compete; "layer": all layers lose the same share. Not for a pattern.
        keep: names of layers or blocks that are not pruned.
        keep_first_and_last: nor the first convolution and the classifier.
        seed: for the criterion "random".

    Raises:
        UserError: at construction, for an unknown criterion.
    """

    goal: Target | Pattern
    criterion: str = "l2"
    scope: Literal["global", "layer"] = "global"
    keep: tuple[str, ...] = ()
    keep_first_and_last: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_criterion(self.criterion, channels=False)

    def budget(self, network: nn.Module, image_size: int) -> Budget:
        """What the network, as it is before any pruning, has to lose.

        Raises:
            UserError: a layer to keep is not there, nothing can be pruned, or the target cannot be met within 1 %.
        """
        layers = prunable_layers(network, self.keep, self.keep_first_and_last)
        if not isinstance(self.goal, Target):
            of = self.goal[1]
            dense = [name for name, layer in layers.items() if not fits_pattern(layer.weight, of)]
            if dense:
                logger.warning(
                    "not pruned, because their input channels are no multiple of %d: %s", of, ", ".join(dense)
                )
            layers = {name: layer for name, layer in layers.items() if name not in dense}
        if not layers:
            raise UserError("there is no layer that can be pruned: keep fewer layers, or choose another pattern")
        everything = nonzero_masks(weights_of(weight_layers(network)))
        uses = uses_per_weight(network, image_size)
        by_macs = isinstance(self.goal, Target) and self.goal.kind == "macs"
        price = {name: uses.get(layer, 0) if by_macs else 1 for name, layer in weight_layers(network).items()}
        costs = {name: price[name] for name in layers}
        before = pruned_cost({name: everything[name] for name in layers}, costs)
        if not isinstance(self.goal, Target):
            return Budget(costs, before, 0)
        elsewhere = pruned_cost(everything, price) - before  # in layers that are kept
        most = sum(costs[name] * layer.weight.numel() for name, layer in layers.items())
        if self.goal.kind == "sparsity":
            total = most
        else:
            total = count_macs(network, image_size) if by_macs else count_parameters(network)[0]
            total -= elsewhere
        amount = self._amount(self.goal, total, elsewhere, before, most)
        return Budget(costs, before, amount)

    @staticmethod
    def _amount(target: Target, total: int, elsewhere: int, before: int, most: int) -> int:
        """Cost to prune, as near to the target as possible.

        Args:
            target: to be met.
            total: cost of all that is not zero in the layers that are kept.
            elsewhere: cost of the zeros in these layers.
            before: cost of the zeros in the others.
            most: cost of all weights in these.
        """
        sparsity = target.kind == "sparsity"
        wanted = target.remaining(total if sparsity else total + elsewhere)
        amount = min(max(round(total - wanted), before), most)
        if sparsity:
            require_met(target, target.value, amount / total)
        else:
            require_met(target, wanted, total - amount)
        return amount

    def masks(
        self,
        network: nn.Module,
        budget: Budget,
        share: float = 1.0,
        alive: Masks | None = None,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> Masks:
        """Which weights stay once a share of what is to be pruned is pruned.

        Args:
            network: as it is now.
            budget: from before any pruning.
            share: in [0, 1]; see `schedules.share`.
            alive: masks of before, of all layers: what they prune stays pruned; None: of what is not zero.
            gradients: for "taylor": from `gradients.loss_gradients`.

        Returns:
            Masks of all layers of `layers.weight_layers`.

        Raises:
            UserError: a score is not finite.
        """
        weights = weights_of(weight_layers(network))
        alive = nonzero_masks(weights) if alive is None else alive
        pruned = {name: weights[name] for name in budget.costs}
        slopes = {name: (gradients or {})[f"{name}.weight"] for name in pruned} if gradients is not None else None
        scores = weight_scores(self.criterion, pruned, slopes, self.seed)
        if not isinstance(self.goal, Target):
            stay, of = self.goal
            return alive | pattern_masks(scores, alive, of - int(share * (of - stay) + 1e-9), of)
        amount = budget.before + round(share * (budget.amount - budget.before))
        choose = global_masks if self.scope == "global" else layer_masks
        return alive | choose(scores, alive, budget.costs, amount)


def parse_pattern(text: str) -> Pattern:
    """N and M from "N:M".

    Raises:
        UserError: it is not of that form, or N is not less than M.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise UserError(f"the pattern {text!r} is not of the form n:m with 0 < n < m, such as 2:4")
    return int(match[1]), int(match[2])
