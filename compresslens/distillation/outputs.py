"""What one forward pass of a network hands to the distillation losses."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """Logits and tapped layers of one forward pass.

    Attributes:
        logits: (N, C) class scores, before softmax.
        features: the output of each tapped layer by its name, (N, C, H, W) maps or (N, D) vectors; "features" are the
            penultimate features.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
