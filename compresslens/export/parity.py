"""Whether an artefact computes what the network computes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from compresslens.errors import UserError


@dataclass(frozen=True)
class Tolerance:
    """What an artefact may differ by.

    Attributes:
        difference: greatest difference of a logit, as a share of the range of all logits; None: any.
        agreement: least share of images with the same predicted class, in [0, 1]. On few images as many may differ as
            that share makes when rounded up: 0.995 allows one of 128.
    """

    difference: float | None
    agreement: float


FLOAT = Tolerance(difference=1e-3, agreement=1.0)
INT8 = Tolerance(difference=None, agreement=0.995)
TIE = 1e-3
"""Classes whose logits in the network are this close, as a share of the range of all logits, are both right."""


@dataclass(frozen=True)
class Parity:
    """How an artefact's logits compare with the network's.

    Attributes:
        images: number of images compared.
        difference: greatest absolute difference of a logit.
        range: greatest minus least of the network's logits.
        disagreements: images whose predicted class differs; ties do not count.
        runtime: what ran the artefact.
    """

    images: int
    difference: float
    range: float
    disagreements: int
    runtime: str

    @property
    def agreement(self) -> float:
        """Share of images with the same predicted class."""
        return 1 - self.disagreements / self.images

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes None."""
        values = {**asdict(self), "agreement": self.agreement}
        return {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}


def compare(expected: Tensor, got: Tensor, runtime: str) -> Parity:
    """Compares logits N×C, of the network and of an artefact.

    Raises:
        UserError: the artefact's are of another shape.
    """
    if expected.shape != got.shape:
        raise UserError(f"{runtime} gives logits {tuple(got.shape)} where the network gives {tuple(expected.shape)}")
    expected, got = expected.double().cpu(), got.double().cpu()
    span = float(expected.max() - expected.min())
    # By how much the network prefers its own choice to the artefact's. Not a number: a disagreement.
    margins = expected.max(1).values - expected.gather(1, got.argmax(1, keepdim=True)).squeeze(1)
    agrees = (margins <= TIE * span) & torch.isfinite(got).all(1)
    difference = float((expected - got).abs().max())
    return Parity(len(expected), difference, span, int((~agrees).sum()), runtime)


def shortfall(parity: Parity, tolerance: Tolerance) -> str | None:
    """The figures, and what is tolerated; None if the artefact is as good as the tolerance wants it."""
    allowed = math.ceil(round((1 - tolerance.agreement) * parity.images, 9))
    limit = math.inf if tolerance.difference is None else tolerance.difference * parity.range
    if parity.disagreements <= allowed and parity.difference <= limit:
        return None
    difference = "" if tolerance.difference is None else f" (at most {limit:.3g} is tolerated)"
    return (
        f"in {parity.runtime} its logits differ by up to {parity.difference:.3g}{difference}, and "
        f"{parity.disagreements} of {parity.images} predictions differ (at most {allowed} tolerated)"
    )


def check(parity: Parity, tolerance: Tolerance, artefact: str) -> None:
    """Raises UserError, with the figures, unless the artefact is as good as the tolerance wants it."""
    if figures := shortfall(parity, tolerance):
        raise UserError(f"{artefact} does not compute what the network computes: {figures}; it was removed")
