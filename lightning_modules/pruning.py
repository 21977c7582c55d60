"""Prune and fine-tune: weights become zero or channels disappear, and what is left learns to do without them."""

from __future__ import annotations

import logging
import math
from typing import Any, Literal, cast

from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.pruning import channel_pruning, channels, masks, weight_pruning
from compresslens.pruning.channel_pruning import ChannelPruning
from compresslens.pruning.criteria import Criterion
from compresslens.pruning.gradients import loss_gradients
from compresslens.pruning.layers import weight_layers, weights_of
from compresslens.pruning.schedules import (
    Schedule,
    check_end,
    check_window,
    last_validation,
    share,
    update_steps,
    updates_due,
)
from compresslens.pruning.targets import one_target
from compresslens.pruning.weight_pruning import WeightPruning, parse_pattern
from lightning_modules.compression import Compression
from lightning_modules.parameter_replacement import replace_parameters

logger = logging.getLogger(__name__)
Structure = Literal["unstructured", "n:m", "channels"]


class PruneAndFinetune(Compression):
    """Prunes a trained network at once before the fit, or bit by bit during it, and trains what is left.

    * "unstructured": single weights become zero, and are exactly zero after every optimizer step. The network does not
      get faster on dense hardware, but it compresses.
    * "n:m": of every m weights in a row along the input channels n stay (2:4 runs faster on some GPUs). Layers whose
      input channels cannot be divided so stay dense, and are named in a warning.
    * "channels": they are removed, with everything that depends on them; the network gets smaller and faster.

    The first convolution and the classifier are kept. Weights that are zero from the start (unless all of a layer are)
    were pruned by an earlier run: they stay zero, and count. Rank zero decides, so all ranks prune the same.

    A gradual schedule prunes between steps; channels disappear between epochs, where the optimizer also forgets what it
    knows about the parameters that were cut. As long as it is under way, no checkpoint is the best one.

    Args:
        network: the trained network.
        structure: what is pruned; see above.
        criterion: what is least important: "l1" or "l2" magnitude, first-order "taylor", "lamp", "random"; for channels
            also "bn_scale" and "geometric_median".
        scope: whether weights (or channels) of all layers compete ("global"), or every layer loses the same share
            ("layer"); "global" if None. Not for "n:m".
        sparsity: target: share of the prunable weights that become zero; for channels, share of the whole network's
            parameters that is removed. In [0, 1).
        parameters: target: how many parameters of the whole network stay (single weights: are not pruned to zero);
            below 1 a fraction of those of `network`, from 1 on a count.
        macs: target: multiply-accumulates of the whole network that stay, likewise. Where single weights are pruned,
            those with zeros do not count, and the score per multiply-accumulate decides.
        pattern: for "n:m": how many weights of how many stay; "2:4" (in YAML with the quotes) if None.
        schedule: "one_shot" before training; "iterative" in equal parts; "cubic" (Zhu & Gupta 2017).
        schedule_steps: number of updates of a gradual schedule, at least 2; 10 if None.
        schedule_begin: fraction of the training at which the first takes place; 0 if None.
        schedule_end: fraction of the training at which the last takes place; 0.6 if None.
        keep_layers: names of more layers or blocks to keep.
        keep_first_and_last: keep the first convolution and the classifier (whose outputs are kept in any case).
        round_to: for "channels": the widths become multiples of this; 1 if None.
        max_channel_sparsity: for "channels": share of a layer's channels that may go at most; 0.9 if None.
        calibration_samples: training images for the gradients of "taylor".
        options: those of `Compression`: teacher, losses, optimizer, seed and so on.
    """

    def __init__(
        self,
        network: nn.Module,
        structure: Structure = "unstructured",
        criterion: Criterion = "l2",
        scope: Literal["global", "layer"] | None = None,
        sparsity: float | None = None,
        parameters: float | None = None,
        macs: float | None = None,
        pattern: str | None = None,
        schedule: Schedule = "one_shot",
        schedule_steps: int | None = None,
        schedule_begin: float | None = None,
        schedule_end: float | None = None,
        keep_layers: list[str] | None = None,
        keep_first_and_last: bool = True,
        round_to: int | None = None,
        max_channel_sparsity: float | None = None,
        calibration_samples: int = 512,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        if structure not in ("unstructured", "n:m", "channels"):
            raise UserError(f"structure is {structure!r}; it must be 'unstructured', 'n:m' or 'channels'")
        unfit: dict[str, Any] = {"pattern": pattern}
        if structure == "n:m":
            unfit = {"sparsity": sparsity, "parameters": parameters, "macs": macs, "scope": scope}
        if structure != "channels":
            unfit |= {"round_to": round_to, "max_channel_sparsity": max_channel_sparsity}
        _require_unset(unfit, f"structure: {structure}")
        goal = parse_pattern(pattern or "2:4") if structure == "n:m" else one_target(sparsity, parameters, macs)
        rules: dict[str, Any] = {"criterion": criterion, "scope": scope or "global", "seed": self.seed}
        rules["keep"] = tuple(keep_layers or [])
        self.pruning: WeightPruning | ChannelPruning
        if structure == "channels":
            limits = {"round_to": _default(round_to, 1), "max_sparsity": _default(max_channel_sparsity, 0.9)}
            self.pruning = ChannelPruning(cast(Any, goal), keep_first=keep_first_and_last, **limits, **rules)
        else:
            self.pruning = WeightPruning(goal, keep_first_and_last=keep_first_and_last, **rules)
        timing = {"schedule_steps": schedule_steps, "schedule_begin": schedule_begin, "schedule_end": schedule_end}
        if schedule == "one_shot":
            _require_unset(timing, "schedule: one_shot")
        self.schedule = schedule
        self.updates = 1 if schedule == "one_shot" else _default(schedule_steps, 10)
        self.begin, self.end = _default(schedule_begin, 0.0), _default(schedule_end, 0.6)
        self.calibration_samples = calibration_samples
        self._check_schedule()
        self._budget: Any = None
        self._updates_done = 0
        self._update_at: list[int] = []  # optimizer steps; epochs where channels are removed
        self._masks: dict[str, masks.PackedMask] = {}
        self._masked: masks.MaskedWeights | None = None

    @property
    def compression_finished(self) -> bool:
        """Whether the last update of the schedule has taken place."""
        return self._updates_done >= self.updates

    # Set-up ------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Plans when to prune; where that is at once, prunes before the first fit."""
        if self.trainer.state.fn == "fit" and self.schedule != "one_shot":
            self._plan()
        super().configure_model()

    def compress(self) -> None:
        """Prunes at once, or makes sure that it will be possible to."""
        self.model.to(self.trainer.strategy.root_device)
        self._set_masks(masks.nonzero_masks(weights_of(weight_layers(self.model))))
        if self.schedule == "one_shot":
            self._update(1)
        else:
            self.on_rank_zero(self._rehearse)

    def on_fit_start(self) -> None:
        """The weights are now where they will be trained."""
        super().on_fit_start()
        self._masked = None

    # Training ----------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Removes the channels that are due."""
        super().on_train_epoch_start()
        if isinstance(self.pruning, ChannelPruning):
            self._update(updates_due(self.current_epoch, self._update_at))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Prunes the weights that are due before this step."""
        if isinstance(self.pruning, WeightPruning):
            self._update(updates_due(self.global_step, self._update_at))
        super().on_train_batch_start(batch, batch_idx)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """A step of the optimizer, after which what was pruned is zero again."""
        super().optimizer_step(*arguments, **options)
        self._apply_masks()

    def on_train_end(self) -> None:
        """Warns of a fit that something has ended before the schedule."""
        super().on_train_end()
        if not self.compression_finished and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            logger.warning(
                "the fit has ended after %d of %d updates: the network is not pruned as far as asked for",
                self._updates_done,
                self.updates,
            )

    # Checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds how far pruning has come, and which weights stay, one bit each."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["pruning"] = {"updates": self._updates_done, "masks": self._masks}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores that, and the structure.

        Raises:
            UserError: a fit is to be continued from a checkpoint of another method, or of another network.
        """
        super().on_load_checkpoint(checkpoint)
        self.model.to(memory_format=self.memory_format)
        self._masked = None
        state = checkpoint.get("pruning")
        if state is not None:
            self._updates_done, self._masks = state["updates"], state["masks"]
        elif self.trainer.state.fn == "fit":
            raise UserError("the checkpoint is not that of a pruning run: give it as network.weights instead")

    # Pruning -----------------------------------------------------------------------------------------------------

    def _update(self, due: int) -> None:
        """Prunes as far as the schedule wants after so many updates, unless that has been done."""
        if due <= self._updates_done:
            return
        part = share(self.schedule, due / self.updates)
        if isinstance(self.pruning, ChannelPruning):
            self._remove_channels(self.pruning, part)
        else:
            self._mask_weights(self.pruning, part)
        self._updates_done = due
        logger.info("pruned %.1f %% of what is to go (update %d of %d)", 100 * part, due, self.updates)

    def _mask_weights(self, pruning: WeightPruning, part: float) -> None:
        def decide() -> dict[str, masks.PackedMask]:
            budget: weight_pruning.Budget = self._measured()
            alive = {**masks.nonzero_masks(self._weights()), **self._unpacked()}
            chosen = pruning.masks(self.model, budget, part, alive, self._gradients())
            return {name: masks.pack(mask) for name, mask in chosen.items() if not mask.all()}

        self._masks = self.on_rank_zero(decide)
        self._masked = None
        self._apply_masks()

    def _remove_channels(self, pruning: ChannelPruning, part: float) -> None:
        image_size = self._data.image_size

        def decide() -> list[channels.Removal]:
            budget: channel_pruning.Budget = self._measured()
            return pruning.removals(self.model, image_size, budget, part, self._gradients())

        before = dict(self.named_parameters())
        channels.remove_channels(self.model, image_size, self.on_rank_zero(decide))
        zeros = masks.nonzero_masks({name: weight for name, weight in self._weights().items() if name in self._masks})
        self._set_masks(zeros)
        replaced = {before[name]: new for name, new in self.named_parameters() if before[name] is not new}
        if replaced and self._update_at:
            replace_parameters(self, replaced)

    def _measured(self) -> Any:
        """What the network has to lose; of the original one, so that it does not depend on when it is asked for."""
        if self._budget is None:
            self._budget = self.pruning.budget(self._original[0], self._data.image_size)
        return self._budget

    def _rehearse(self) -> None:
        """Raises UserError unless the target of a gradual schedule can be met."""
        budget = self._measured()
        if isinstance(self.pruning, ChannelPruning):
            # Any gradients will do here: what can be reached hardly depends on which channels go.
            gradients = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
            self.pruning.removals(self.model, self._data.image_size, budget, gradients=gradients)

    def _gradients(self) -> dict[str, Tensor] | None:
        if self.pruning.criterion != "taylor":
            return None
        return loss_gradients(self.model, self._data.calibration_loader(self.calibration_samples))

    # Masks -------------------------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Tensor]:
        return weights_of(weight_layers(self.model))

    def _unpacked(self) -> masks.Masks:
        return {name: masks.unpack(mask) for name, mask in self._masks.items()}

    def _set_masks(self, new: masks.Masks) -> None:
        self._masks = {name: masks.pack(mask) for name, mask in new.items() if not mask.all()}
        self._masked = None

    def _apply_masks(self) -> None:
        if self._masked is None:
            self._masked = masks.MaskedWeights(self._weights(), self._unpacked())
        self._masked.apply()

    # Checks ------------------------------------------------------------------------------------------------------

    def _check_schedule(self) -> None:
        """Raises UserError for settings that cannot work together."""
        if self.schedule == "one_shot":
            return
        check_window(self.updates, self.begin, self.end)
        if isinstance(self.pruning, ChannelPruning) and self._student_layers:
            raise UserError(
                f"losses on the layers {', '.join(self._student_layers)} need their widths to stay as they are: "
                "remove channels by the schedule one_shot"
            )

    def _plan(self) -> None:
        """Lays down when to prune.

        Raises:
            UserError: the training has no end or ends too early, or its weights are averaged.
        """
        trainer: Any = self.trainer
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
            raise UserError(
                f"averaged weights would not be those of the schedule {self.schedule}: "
                "take the averaging callback away, or prune by one_shot"
            )
        total = self.steps_in(trainer.max_epochs, trainer.max_steps)
        per_epoch = self.steps_in(1)
        self._update_at = update_steps(total, self.begin, self.end, self.updates)
        last = self._update_at[-1]
        if isinstance(self.pruning, ChannelPruning):
            self._update_at = [math.ceil(step / per_epoch) for step in self._update_at]
            last = self._update_at[-1] * per_epoch
        every = trainer.check_val_every_n_epoch if trainer.limit_val_batches else None
        if not trainer.fast_dev_run:
            check_end(last, last_validation(total, per_epoch, every))


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _require_unset(settings: dict[str, Any], context: str) -> None:
    """Raises UserError if one of the settings is given."""
    for name, value in settings.items():
        if value is not None:
            raise UserError(f"{name} is {value}, which does not go with {context}: leave it out")
