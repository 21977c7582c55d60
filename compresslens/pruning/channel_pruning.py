"""From settings to channels that go: narrowing a network to a target, at once or in several updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.footprint import count_macs, count_parameters
from compresslens.pruning.channel_selection import Kind, Removal
from compresslens.pruning.channels import least_widths, select_channels
from compresslens.pruning.criteria import check_criterion
from compresslens.pruning.targets import TOLERANCE, Target, require_met


@dataclass(frozen=True)
class Budget:
    """What a network has to lose.

    Attributes:
        kind: what counts.
        total: how much the network has of it before any pruning.
        wanted: how much is to stay.
        slack: how much less will do.
        least: channels that must stay, by layer.
    """

    kind: Kind
    total: int
    wanted: float
    slack: float
    least: dict[str, int]


@dataclass(frozen=True)
class ChannelPruning:
    """Settings of the removal of channels.

    Attributes:
        goal: a sparsity is the share of the network's parameters that goes.
        criterion: one of `criteria.CHANNEL_CRITERIA`.
        scope: "global": channels of all groups of layers compete; "layer": all groups lose the same share.
        keep: names of layers or blocks whose outputs stay as they are; the classifier's always do.
        keep_first: the first convolution's do, too.
        round_to: the widths become multiples of this.
        max_sparsity: share of a layer's channels that may go at most, in (0, 1].
        seed: for the criterion "random".

    Raises:
        UserError: at construction, for an unknown criterion or a number that makes no sense.
    """

    goal: Target
    criterion: str = "l2"
    scope: Literal["global", "layer"] = "global"
    keep: tuple[str, ...] = ()
    keep_first: bool = True
    round_to: int = 1
    max_sparsity: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        check_criterion(self.criterion, channels=True)
        if self.round_to < 1:
            raise UserError(f"round_to is {self.round_to}; it must be at least 1")
        if not 0 < self.max_sparsity <= 1:
            raise UserError(f"max_channel_sparsity is {self.max_sparsity:g}; it must be in (0, 1]")

    def budget(self, network: nn.Module, image_size: int) -> Budget:
        """What the network, as it is before any pruning, has to lose."""
        kind: Kind = "macs" if self.goal.kind == "macs" else "parameters"
        total = count_macs(network, image_size) if kind == "macs" else count_parameters(network)[0]
        wanted = self.goal.remaining(total)
        slack = TOLERANCE * (total - wanted if self.goal.kind == "sparsity" else wanted)
        return Budget(kind, total, wanted, slack, least_widths(network, self.max_sparsity))

    def removals(
        self,
        network: nn.Module,
        image_size: int,
        budget: Budget,
        share: float = 1.0,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> list[Removal]:
        """Which channels go next, so that a share of what is to be saved is saved in all.

        Args:
            network: as it is now; left so.
            image_size: side of its images.
            budget: from before any pruning.
            share: in [0, 1]; see `schedules.share`.
            gradients: for "taylor": from `gradients.loss_gradients`.

        Raises:
            UserError: a layer to keep is not there, the network cannot be traced, or (where everything is due) the
                target cannot be met within 1 %.
        """
        removals, reached = select_channels(
            network,
            image_size,
            budget.kind,
            budget.total - share * (budget.total - budget.wanted),
            budget.slack,
            criterion=self.criterion,
            gradients=gradients,
            scope=self.scope,
            keep=self.keep,
            keep_first=self.keep_first,
            round_to=self.round_to,
            least=budget.least,
            seed=self.seed,
        )
        if share == 1 and self.goal.kind == "sparsity":
            require_met(self.goal, self.goal.value, 1 - reached / budget.total)
        elif share == 1:
            require_met(self.goal, budget.wanted, reached)
        return removals
