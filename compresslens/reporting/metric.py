"""One figure of a report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A figure with its interval.

    Attributes:
        value: the figure itself; NaN where it is not defined.
        ci95: 95 % confidence interval, or None where none makes sense (counts, times).
        n: samples that it is computed from.
        reference: the same figure of the reference network, or None if there is none.
    """

    value: float
    ci95: tuple[float, float] | None = None
    n: int = 1
    reference: float | None = None

    def as_json(self) -> dict[str, Any]:
        """As in `results.json`; what is not finite becomes null."""
        interval = None if self.ci95 is None else [finite(bound) for bound in self.ci95]
        return {"value": finite(self.value), "ci95": interval, "n": self.n, "reference": finite(self.reference)}


def finite(value: float | None) -> float | None:
    """The value, or None if it is NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None
