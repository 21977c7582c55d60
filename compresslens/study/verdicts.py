"""What a model's figures say in words: does it look at the right thing, is it as hard to fool?

Both are judged by the whole 95 % interval: within what counts as the same, beyond it, or neither. "Undecided" is an
answer: the interval then admits both a change that matters and one that does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from compresslens.study.models import Estimate, Model
from compresslens.study.thresholds import Thresholds

LEAST_IMAGES = 10  # below that nothing is decided: so few images seldom hold what would change the answer
MOST_FAILURES = 0.05  # share of images: an attack without a bound that fails more often is not to be believed


@dataclass(frozen=True)
class Verdict:
    """An answer and why.

    Attributes:
        answer: "yes", "weaker", "no" or "yes", "harder", "easier"; "undecided", "unreliable figure" or "not measured".
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
    checked = [(found.get("sanity") or {}).get("depends_on_weights") for found in details]
    if any(depends is False for depends in checked):
        return Verdict(
            "unreliable figure", "its maps hardly change when its weights are shuffled, so they show nothing learned"
        )
    change = model.relative_change("cam/energy_in_mask")
    if change is None or change.estimate.interval is None:
        return Verdict("not measured", "no maps of model and reference on images with object masks")
    relative, (low, high) = change.estimate, change.estimate.interval
    text = f"{relative.value:+.1%} energy on the object ({low:+.1%} to {high:+.1%}, {_images(model, relative.n)})"
    if not checked or None in checked:
        text += "; whether the maps depend on the weights was not checked"
    if relative.n < LEAST_IMAGES:
        return Verdict("undecided", f"{text}: too few images", relative, change.p)
    if low >= -thresholds.localization:
        return Verdict("yes", text, relative, change.p)
    if high >= -thresholds.localization:
        return Verdict("undecided", text, relative, change.p)
    own = model.estimate("cam/energy_in_mask").interval
    areas = [found["mask_area"]["value"] for found in details if found.get("mask_area")]
    if own is not None and areas and own[1] <= (1 + thresholds.localization) * float(np.mean(areas)):
        return Verdict("no", f"{text}, no more than chance", relative, change.p)
    return Verdict("weaker", text, relative, change.p)


def as_hard_to_fool(model: Model, thresholds: Thresholds) -> Verdict:
    """By the distance of the nearest adversarials, against the reference's on the same images."""
    panels = model.detail("honesty")
    unreliable = [found for found in panels if found.get("verdict") != "ok"]
    if unreliable:
        return Verdict("unreliable figure", "; ".join(sorted({str(found.get("text")) for found in unreliable})))
    change, images = model.distance_ratio(), model.attacked()
    if images.attacked and max(images.failed, images.reference_failed) > MOST_FAILURES * images.attacked:
        return Verdict("unreliable figure", f"the attack, which has no bound, {_failures(images)}")
    if change is None or change.estimate.interval is None:
        return Verdict("not measured", "no attack on model and reference")
    ratio, (low, high) = change.estimate, change.estimate.interval
    text = (
        f"adversarials lie {ratio.value:.2f} × as far ({low:.2f} to {high:.2f}, {_images(model, ratio.n)} of "
        f"{images.images}, those that both classify correctly)"
    )
    if images.failed or images.reference_failed:
        text += f"; the attack {_failures(images)}"
    if len(panels) < len(model.runs):
        text += "; whether gradients are masked was not checked"
    answer = "undecided" if ratio.n < LEAST_IMAGES else _by_ratio(low, high, thresholds.distance)
    return Verdict(answer, text + (": too few images" if ratio.n < LEAST_IMAGES else ""), ratio, change.p)


def _by_ratio(low: float, high: float, tolerance: float) -> str:
    least, most = 1 / (1 + tolerance), 1 + tolerance
    if low >= least and high <= most:
        return "yes"
    if low > most:
        return "harder"
    return "easier" if high < least else "undecided"


def _failures(images: Any) -> str:
    return (
        f"failed on {images.failed} of {images.attacked} images of the model and on {images.reference_failed} of the "
        "reference"
    )


def _images(model: Model, n: int) -> str:
    return f"{n} images" if len(model.runs) == 1 else f"{n} images in {len(model.runs)} seeds"
