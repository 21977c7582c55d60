"""What a model's figures say in words: does it look at the right thing, is it as hard to fool?

"Undecided" is an answer: the interval then admits both a change that matters and one that does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from compresslens.study.models import Estimate, Model

Looks = Literal["yes", "weaker", "no", "undecided", "unreliable figure", "not measured"]
Fools = Literal["yes", "harder", "easier", "undecided", "unreliable figure", "not measured"]


@dataclass(frozen=True)
class Thresholds:
    """What counts as the same.

    Attributes:
        localization: share of the reference's energy in the mask that may be lost.
        distance: factor - 1 by which adversarials may lie nearer or farther.
    """

    localization: float = 0.1
    distance: float = 0.1


@dataclass(frozen=True)
class Verdict:
    """An answer and why.

    Attributes:
        answer: see `Looks` and `Fools`.
        reason: one sentence with the figures.
        estimate: relative change of the energy in the mask, or ratio of distances; None where not measured.
        p: of the paired test, not adjusted; NaN where not measured.
    """

    answer: str
    reason: str
    estimate: Estimate | None = None
    p: float = math.nan


def looks_at_the_right_thing(model: Model, thresholds: Thresholds) -> Verdict:
    """By the share of its maps' energy that lies on the object, against the reference's on the same images."""
    details = model.detail("cam")
    if any((found.get("sanity") or {}).get("depends_on_weights") is False for found in details):
        return Verdict(
            "unreliable figure", "its maps hardly change when its weights are shuffled, so they show nothing learned"
        )
    change, reference = model.change("cam/energy_in_mask"), model.reference("cam/energy_in_mask")
    if change is None or not reference > 0:
        return Verdict("not measured", "no maps of model and reference on images with object masks")
    relative = _scaled(change.estimate, 1 / reference)
    low, high = relative.interval or (relative.value, relative.value)
    text = f"{relative.value:+.1%} energy on the object ({low:+.1%} to {high:+.1%}, {relative.n} images)"
    if low >= -thresholds.localization:
        return Verdict("yes", text, relative, change.p)
    if high < -thresholds.localization:
        own = model.estimate("cam/energy_in_mask")
        chance = [found["mask_area"]["value"] for found in details if found.get("mask_area")]
        at_chance = own.interval is not None and len(chance) > 0 and own.interval[0] <= max(chance)
        return Verdict(
            "no" if at_chance else "weaker", f"{text}{', no more than chance' if at_chance else ''}", relative, change.p
        )
    return Verdict("undecided", text, relative, change.p)


def as_hard_to_fool(model: Model, thresholds: Thresholds) -> Verdict:
    """By the distance of the nearest adversarials, against the reference's on the same images."""
    masked = [run.results["metrics"].get("robustness/masking", {}).get("value") for run in model.runs]
    if any(value is not None and value > 0 for value in masked):
        texts = {run.results.get("verdicts", {}).get("robustness", "gradients are masked") for run in model.runs}
        return Verdict("unreliable figure", "; ".join(sorted(texts)))
    change = model.distance_ratio()
    if change is None:
        return Verdict("not measured", "no attack on model and reference")
    ratio = change.estimate
    low, high = ratio.interval or (ratio.value, ratio.value)
    text = f"adversarials lie {ratio.value:.2f} × as far ({low:.2f} to {high:.2f}, {ratio.n} images)"
    if None in masked:
        text += "; whether gradients are masked was not checked"
    return Verdict(_by_ratio(low, high, thresholds.distance), text, ratio, change.p)


def _by_ratio(low: float, high: float, tolerance: float) -> Fools:
    if low >= 1 / (1 + tolerance) and high <= 1 + tolerance:
        return "yes"
    if low > 1:
        return "harder"
    return "easier" if high < 1 else "undecided"


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    interval = estimate.interval
    scaled = None if interval is None else (interval[0] * factor, interval[1] * factor)
    return Estimate(estimate.value * factor, scaled, estimate.n)
