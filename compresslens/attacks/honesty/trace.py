"""What happens during an attack: does it descend, and does it return the best that it saw?

After Pintor et al. 2022 (arXiv:2106.09947), "Indicators of Attack Failure".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compresslens.attacks.carlini_wagner import FURTHER
from compresslens.attacks.honesty.check import SHARE, Check, Curve, array, graded_images, skipped, worst
from compresslens.attacks.margin import is_adversarial
from compresslens.attacks.result import AttackResult, Evaluation

VANISHED = 1e-19  # the square of a smaller norm is not a normal float32 number
# By which a returned distance may exceed the least one observed, relatively: a rounding; and what the attack adds where
# the point itself does not stand the last check.
ROUNDED = 1e-3
MOVED = max(FURTHER) - 1 + ROUNDED
TENTHS = 10


def is_useless(norms: Tensor) -> Tensor:
    """Whether gradients of these norms (N) are zero, too small to be squared in float32, or not numbers."""
    return ~(torch.isfinite(norms) & (norms > VANISHED))


class Trace:
    """Keeps the figures of every evaluation of an attack; hand it over as `observe`.

    Args:
        images: N×C×H×W, those of the call.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self._samples: list[Tensor] = []
        self._margins: list[Tensor] = []
        self._l2: list[Tensor] = []
        self._norms: list[Tensor] = []

    def __call__(self, evaluation: Evaluation) -> None:
        """Takes down an evaluation."""
        offsets = evaluation.points.double() - self.images[evaluation.samples].double()
        self._samples.append(evaluation.samples.cpu())
        self._margins.append(evaluation.margins.detach().cpu())
        self._l2.append(offsets.flatten(1).norm(dim=1).cpu())
        self._norms.append(evaluation.gradients.flatten(1).norm(dim=1).cpu())

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._samples)

    @property
    def samples(self) -> npt.NDArray[np.int64]:
        """Image of each row, in the order of the evaluations; empty if there were none."""
        return torch.cat(self._samples).numpy() if self._samples else np.empty(0, np.int64)

    @property
    def margins(self) -> npt.NDArray[np.float64]:
        """Margin of each row."""
        return array(torch.cat(self._margins)) if self._margins else np.empty(0)

    @property
    def l2(self) -> npt.NDArray[np.float64]:
        """Distance of each row from its image."""
        return array(torch.cat(self._l2)) if self._l2 else np.empty(0)

    @property
    def useless(self) -> npt.NDArray[np.bool_]:
        """Whether the row's gradient is zero, too small to be squared, or not a number."""
        if not self._norms:
            return np.empty(0, np.bool_)
        return is_useless(torch.cat(self._norms)).numpy()


def descent_check(trace: Trace) -> Check:
    """The margin must fall below where it began; an attack whose loss stands still has nothing to follow."""
    if len(trace) == 0:
        return skipped("descent", "the attack evaluated nothing")
    paths = [_running_minimum(trace.margins[trace.samples == sample]) for sample in np.unique(trace.samples)]
    stuck = sum(not path[-1] < path[0] for path in paths)
    share = stuck / len(paths)
    reason = f"the margin never falls on {share:.0%} of the images"
    curve = Curve("median over the images", *_median_path(paths))
    labels = ("gradient evaluations", "least margin so far ÷ first")
    return Check("descent", graded_images(stuck, len(paths)), share, SHARE, reason, (curve,), *labels)


def best_point_check(trace: Trace, white: AttackResult) -> Check:
    """The attack must return its nearest adversarial, and a success if it saw any.

    A point that does not stand the last check is moved on by up to a percent: worth a warning.

    Args:
        trace: of the attack.
        white: what it returned.
    """
    if len(trace) == 0:
        return skipped("best_point", "the attack evaluated nothing")
    l2 = np.where(is_adversarial(torch.from_numpy(trace.margins)).numpy(), trace.l2, np.inf)
    seen = np.full(len(white), np.inf)
    np.minimum.at(seen, trace.samples, l2)
    returned = array(white.l2)
    if not np.isfinite(seen).any() and not np.isfinite(returned).any():
        return skipped("best_point", "the attack neither saw nor returned an adversarial")
    worse, moved = (int((returned > seen * (1 + excess)).sum()) for excess in (MOVED, ROUNDED))
    verdict = worst(graded_images(worse, len(white)), "warn" if moved else "pass")
    both = np.isfinite(seen) & np.isfinite(returned)
    order = np.argsort(seen[both])
    curve = Curve("images", tuple(seen[both][order].tolist()), tuple(returned[both][order].tolist()))
    reason = (
        f"on {moved} of {len(white)} images the attack saw a nearer adversarial than it returned, on {worse} by more "
        "than a percent"
    )
    labels = ("least distance seen", "distance returned")
    return Check("best_point", verdict, worse / len(white), SHARE, reason, (curve,), *labels)


def useless_curve(trace: Trace) -> Curve:
    """Share of useless gradients in each tenth of the attack."""
    parts = np.array_split(trace.useless, TENTHS)
    points = [((k + 0.5) / TENTHS, float(part.mean())) for k, part in enumerate(parts) if len(part)]
    return Curve("during the attack", tuple(x for x, _ in points), tuple(y for _, y in points))


def _running_minimum(margins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.minimum.accumulate(np.where(np.isnan(margins), np.inf, margins))


def _median_path(paths: list[npt.NDArray[np.float64]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Median of paths of different lengths, each relative to its start and continued at its end."""
    length = max(map(len, paths))
    starts = [abs(path[0]) or 1.0 for path in paths]
    rows = [np.pad(path, (0, length - len(path)), "edge") / start for path, start in zip(paths, starts, strict=True)]
    middle = np.median(rows, 0)
    return tuple(float(k) for k in range(1, length + 1)), tuple(middle.tolist())
