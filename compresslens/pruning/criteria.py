"""How much each weight matters: what matters least is pruned first. Channels: see `channel_importance`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from compresslens.errors import UserError
from compresslens.networks.names import nearest

Criterion = Literal["l1", "l2", "taylor", "lamp", "random", "bn_scale", "geometric_median"]
WEIGHT_CRITERIA = ("l1", "l2", "taylor", "lamp", "random")
CHANNEL_CRITERIA = ("l1", "l2", "taylor", "lamp", "random", "bn_scale", "geometric_median")


def check_criterion(criterion: str, channels: bool) -> None:
    """Checks that weights, or channels, can be ranked by a criterion.

    Raises:
        UserError: they cannot; names the criteria that there are.
    """
    known = CHANNEL_CRITERIA if channels else WEIGHT_CRITERIA
    if criterion not in known:
        what = "channels" if channels else "single weights"
        raise UserError(
            f"there is no criterion {criterion!r} for {what}; there are {', '.join(known)} "
            f"(nearest: {nearest(criterion, known)})"
        )


def weight_scores(
    criterion: str, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Importance of each single weight, comparable between layers; higher is more important.

    * l1: `|w|`; l2: `w²` (the same order, but another price per multiply-accumulate);
    * taylor: `(w · g)²` with the gradient `g` of the loss: first-order estimate of the squared change of the loss
      without the weight (Molchanov et al. 2019, equation 5);
    * lamp: `w²` divided by the sum of squares of this weight and all larger ones of its layer (Lee et al. 2021,
      equation 3);
    * random: uniform in [0, 1), by the seed.

    Args:
        criterion: one of `WEIGHT_CRITERIA`.
        weights: by layer, of any shape.
        gradients: for "taylor": of the same shapes.
        seed: for "random".

    Returns:
        Scores of the shapes of the weights, float64, on the CPU, none negative.

    Raises:
        UserError: a score is not finite.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    scores = {}
    for name, weight in weights.items():
        value = weight.detach().cpu().double()
        if criterion == "l1":
            score = value.abs()
        elif criterion == "l2":
            score = value.square()
        elif criterion == "lamp":
            score = lamp(value.square())
        elif criterion == "taylor":
            assert gradients is not None
            score = (value * gradients[name].detach().cpu().double()).square()
        else:
            score = torch.rand(value.shape, generator=generator, dtype=torch.float64, device="cpu")
        if not math.isfinite(float(score.sum())):
            raise UserError(f"the weights of '{name}' cannot be ranked: their {criterion} score is not finite")
        scores[name] = score
    return scores


def lamp(squares: Tensor) -> Tensor:
    """Each number divided by the sum of itself and all larger ones (of equal ones: those that come later), in [0, 1].

    Args:
        squares: of any shape, none negative.
    """
    ordered, order = squares.flatten().sort(stable=True)
    sums = ordered.double().flip(0).cumsum(0).flip(0)
    ranked = torch.where(sums > 0, ordered / sums.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return torch.empty_like(ranked).scatter_(0, order, ranked).reshape(squares.shape).to(squares.dtype)
