"""Small helpers of training that need no trainer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compresslens.errors import UserError


def parameter_groups(module: nn.Module, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Parameters to be trained; biases and normalization weights apart, without weight decay, unless asked otherwise.

    Biases and normalization weights are the parameters of at most one dimension.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if decay_norm_and_bias:
        return [{"params": trained}]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    others = [parameter for parameter in trained if parameter.ndim > 1]
    return [{"params": others}, {"params": vectors, "weight_decay": 0.0}]


def optimizer_steps(batches: int, limit: float, accumulated: int, epochs: int, most: int = -1) -> int:
    """Optimizer steps of a whole training.

    Args:
        batches: in the training loader of one process.
        limit: `limit_train_batches` of the trainer: a number of batches (int), or a fraction of them (float).
        accumulated: batches per step; what is left over at the end of an epoch makes a step of its own.
        epochs: greatest number of epochs; -1 for no limit.
        most: greatest number of steps; -1 for no limit.

    Raises:
        UserError: there is no limit at all.
    """
    if epochs < 0:
        if most < 0:
            raise UserError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        return most
    used = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(used / accumulated) * epochs
    return steps if most < 0 else min(steps, most)


def build_scheduler(factory: Callable[..., Any], optimizer: Optimizer, total_steps: Callable[[], int]) -> Any:
    """Makes the scheduler, telling it the number of steps if it needs that and the config does not say.

    Args:
        factory: takes the optimizer, and keyword arguments of the scheduler's class.
        optimizer: what the scheduler drives.
        total_steps: gives the number of the scheduler's steps in the whole training.
    """
    try:
        return factory(optimizer)
    except (TypeError, ValueError) as error:
        if "total_steps" not in str(error) and "T_max" not in str(error):
            raise
        name = "total_steps" if "total_steps" in str(error) else "T_max"
        return factory(optimizer, **{name: total_steps()})


def step_seed(*numbers: int) -> int:
    """A 32-bit seed that depends on all of the numbers, and hardly ever repeats."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


@torch.no_grad()
def dry_run(network: nn.Module, image_size: int) -> Tensor:
    """Output for one grey image, in eval mode; the network's modes and random state are left as they were."""
    modes = [(module, module.training) for module in network.modules()]
    like = next(network.parameters(), torch.empty(()))
    network.eval()
    try:
        return network(torch.full((1, 3, image_size, image_size), 0.5, device=like.device, dtype=like.dtype))
    finally:
        for module, training in modes:
            module.training = training


def newest_checkpoint(folder: Path) -> str:
    """The checkpoint in a folder that was saved last, for messages; "none yet" if there is none."""
    files = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return str(files[-1]) if files else "none yet"
