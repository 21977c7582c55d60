"""Parameters that are cut in the middle of a fit."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.strategies import DDPStrategy
from torch import nn


def replace_parameters(module: Any, replaced: dict[nn.Parameter, nn.Parameter]) -> None:
    """Lets the optimizers, and the gradients' exchange between ranks, go on with other parameters.

    Args:
        module: the LightningModule that is being trained.
        replaced: the new parameter of each old one; what optimizers know of the old ones is forgotten.
    """
    for optimizer in module.trainer.optimizers:
        for group in optimizer.param_groups:
            group["params"] = [replaced.get(parameter, parameter) for parameter in group["params"]]
        for old in replaced:
            optimizer.state.pop(old, None)
    strategy: Any = module.trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = module
        strategy.configure_ddp()
