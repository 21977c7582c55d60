"""Small random outputs of a student and a teacher, and every loss built for them."""

from __future__ import annotations

import torch
from torch import Tensor

from compresslens.distillation import (
    AttentionTransferLoss,
    ClassActivationLoss,
    DecoupledKDLoss,
    DistillationLoss,
    HintLoss,
    LogitKDLoss,
    Outputs,
    RelationalKDLoss,
)

LOSSES: list[type[DistillationLoss]] = [
    AttentionTransferLoss,
    ClassActivationLoss,
    DecoupledKDLoss,
    HintLoss,
    LogitKDLoss,
    RelationalKDLoss,
]
CLASSES = 5


def random(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers times `scale`."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * scale


def labels(count: int, seed: int = 0) -> Tensor:
    """Class indices."""
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def outputs(
    count: int = 3,
    channels: int = 4,
    size: tuple[int, int] = (4, 4),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    requires_grad: bool = True,
) -> Outputs:
    """Outputs whose logits hang on "features", those on "layer4", and so on down to "layer1", a leaf.

    All layers have the same shape; each is an affine, per-position function of the one before.
    """
    maps = {"layer1": random(count, channels, *size, seed=seed, dtype=dtype).requires_grad_(requires_grad)}
    for number in (2, 3, 4):
        mix = random(channels, channels, seed=seed + number, dtype=dtype)
        maps[f"layer{number}"] = torch.einsum("nchw,dc->ndhw", maps[f"layer{number - 1}"], mix)
    features = maps["layer4"].mean((2, 3))
    logits = features @ random(channels, CLASSES, seed=seed + 5, dtype=dtype)
    return Outputs(logits, {**maps, "features": features})


def built(loss_class: type[DistillationLoss], student: Outputs, teacher: Outputs) -> DistillationLoss:
    """The loss with its defaults, after the dry run."""
    loss = loss_class()
    loss.build(student, teacher)
    return loss
