"""What one check of an attack says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from compresslens.reporting.metric import finite

AXES = ("L2 distance", "share of images fooled")  # of success curves

Verdict = Literal["pass", "warn", "fail", "skipped"]
SEVERITY: tuple[Verdict, ...] = ("skipped", "pass", "warn", "fail")

SHARE, LEAST = 0.05, 2  # a check fails on more than this share of the images, if these are at least so many


class Curve(NamedTuple):
    """A line of a figure: a name and as many x as y."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Check:
    """Outcome of a check.

    Attributes:
        name: of the check, as in `results.json`.
        verdict: "fail" where the attack cannot be believed, "warn" where a look at the figure is worth it, "skipped"
            where there was nothing to compare.
        value: what was measured; None where nothing was.
        threshold: beyond it the check fails; None where nothing was measured.
        reason: one clause that says what was seen, with figures.
        curves: for the figure.
        x_label: what x is.
        y_label: what y is.
    """

    name: str
    verdict: Verdict
    value: float | None
    threshold: float | None
    reason: str
    curves: tuple[Curve, ...] = ()
    x_label: str = ""
    y_label: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values without the curves; what is not finite becomes null."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "value": finite(self.value),
            "threshold": finite(self.threshold),
            "reason": self.reason,
        }


def skipped(name: str, reason: str, curves: tuple[Curve, ...] = ()) -> Check:
    """There was nothing to check."""
    labels = AXES if curves else ("", "")
    return Check(name, "skipped", None, None, reason, curves, *labels)


def graded(value: float, warn: float, fail: float) -> Verdict:
    """The verdict on a value that should be small: beyond `fail`, beyond `warn`, or neither."""
    return "fail" if value > fail else "warn" if value > warn else "pass"


def graded_images(hits: int, count: int) -> Verdict:
    """The verdict where `hits` of `count` images show what none should: a single one condemns no network."""
    return "fail" if hits >= LEAST and hits > SHARE * count else "warn" if hits else "pass"


def worst(*verdicts: Verdict) -> Verdict:
    """The most severe of some verdicts."""
    return max(verdicts, key=SEVERITY.index)


def median(l2: Tensor) -> float:
    """Median of N distances, infinity included; of an even number the mean of the two in the middle."""
    return float(np.median(array(l2)))


def array(values: Tensor) -> npt.NDArray[np.float64]:
    """As float64 on the CPU."""
    return values.detach().cpu().double().numpy()


def success_curve(label: str, l2: Tensor) -> Curve:
    """Share of N images that are fooled within a distance: a step at each finite distance."""
    distances = np.sort(array(l2))
    distances = distances[np.isfinite(distances)]
    shares = np.arange(1, len(distances) + 1) / max(len(l2), 1)
    return Curve(label, (0.0, *distances.tolist()), (0.0, *shares.tolist()))
