"""Boxes and pixels found by thresholds on maps (Choe et al. 2020, "Evaluating Weakly Supervised Object Localization").

What is judged is the map at its best threshold, so a score cannot be had by tuning one. The results of single samples
come first; figures of a data set follow from them, so that batches and processes can be merged and samples resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from compresslens.cams.shapes import check_masks

THRESHOLDS = tuple(step / 100 for step in range(100))
OVERLAPS = (0.3, 0.5, 0.7)
_WITHIN_LAYERS = np.zeros((3, 3, 3), dtype=bool)
_WITHIN_LAYERS[1] = True  # eight neighbours of the same layer


@dataclass(frozen=True)
class BoxAccuracy:
    """MaxBoxAccV2 of a data set.

    Attributes:
        value: in [0, 1], mean over the required overlaps of the accuracy at the best threshold.
        thresholds: the best threshold for each required overlap (of equals the least).
        per_sample: N float64 in [0, 1]: for what share of the required overlaps the sample is right at those
            thresholds; NaN where it has no box. The mean over the others is `value`.
    """

    value: float
    thresholds: tuple[float, ...]
    per_sample: Tensor


def best_box_overlaps(maps: Tensor, masks: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """For each threshold the greatest intersection over union of any estimated box with any true box.

    Estimated boxes are those around the connected components (eight neighbours) of the pixels above threshold ×
    maximum of the map; true boxes those around the components of the mask. The authors' code takes contours, which
    surround the holes in a component as well, and adds a pixel to each side of the estimated boxes; it also rounds maps
    to 8 bits. We do none of this.

    Args:
        maps: N×H×W; a map without positive values has no boxes and overlaps by 0.
        masks: N×H×W bool, where the object is.
        thresholds: T numbers in [0, 1), fractions of each map's maximum.

    Returns:
        N×T float64 in [0, 1], on the CPU; NaN where the mask is empty.

    Raises:
        ValueError: masks not bool or not of the maps' size, or a threshold out of range.
    """
    check_masks(maps, masks)
    if not thresholds or not all(0 <= threshold < 1 for threshold in thresholds):
        raise ValueError("thresholds must be at least one number, each at least 0 and below 1")
    fractions = torch.tensor(thresholds, dtype=torch.float64, device=maps.device)
    found = torch.full((len(maps), len(thresholds)), torch.nan, dtype=torch.float64)
    before: Tensor | None = None
    for row, (values, mask) in enumerate(zip(maps.double(), masks, strict=True)):
        if before is None or not torch.equal(values, before):  # a baseline may be the same map for all images
            levels = fractions * values.max()
            estimated = _boxes((values > levels[:, None, None]).cpu().numpy())
        found[row] = torch.from_numpy(_overlaps(estimated, _boxes(mask[None].cpu().numpy()), len(thresholds)))
        before = values
    return found


def max_box_accuracy(
    overlaps: Tensor, thresholds: Sequence[float] = THRESHOLDS, required: Sequence[float] = OVERLAPS
) -> BoxAccuracy:
    """MaxBoxAccV2: accuracy at the best threshold of the data set for each required overlap, averaged over these.

    Args:
        overlaps: N×T from :func:`best_box_overlaps`, of all samples.
        thresholds: the T thresholds they belong to.
        required: a sample is right if its overlap is at least this.

    Raises:
        ValueError: no sample has a box, or the number of thresholds differs.
    """
    if overlaps.ndim != 2 or overlaps.shape[1] != len(thresholds):
        raise ValueError(f"overlaps has shape {tuple(overlaps.shape)}; expected N×{len(thresholds)}, as thresholds")
    known = ~overlaps.isnan().any(1)
    if not known.any():
        raise ValueError("no sample has a true box: every mask is empty")
    hits = overlaps[known][:, :, None] >= torch.tensor(required, dtype=overlaps.dtype, device=overlaps.device)
    accuracies, best = hits.double().mean(0).max(0)
    per_sample = torch.full((len(overlaps),), torch.nan, dtype=torch.float64, device=overlaps.device)
    per_sample[known] = hits[:, best, range(len(required))].double().mean(1)
    return BoxAccuracy(accuracies.mean().item(), tuple(thresholds[index] for index in best.tolist()), per_sample)


def pixel_histograms(maps: Tensor, masks: Tensor, bins: int = 1000) -> Tensor:
    """How many pixels off and on the object have a value in each of the bins.

    Args:
        maps: N×H×W in [0, 1].
        masks: N×H×W bool, where the object is.
        bins: of equal width; the value 1 has one more for itself.

    Returns:
        N×2×(bins + 1) int64: off the object, on the object. Those of batches can be concatenated.

    Raises:
        ValueError: masks not bool or not of the maps' size, or a value outside of [0, 1].
    """
    check_masks(maps, masks)
    if not ((maps >= 0) & (maps <= 1)).all():
        raise ValueError("maps must be in [0, 1]: divide each by its maximum")
    count = len(maps)
    place = (maps.double() * bins).long()
    place += (torch.arange(count, device=maps.device)[:, None, None] * 2 + masks) * (bins + 1)
    return place.flatten().bincount(minlength=count * 2 * (bins + 1)).reshape(count, 2, bins + 1)


def pixel_average_precision(histograms: Tensor) -> Tensor:
    """PxAP, the area under the curve of pixel-wise precision over recall (Choe et al. 2020, equations 3 to 5).

    Args:
        histograms: …×2×B from :func:`pixel_histograms`: `histograms.sum(0)` for the figure of a data set, in which
            samples weigh by their pixels; as they are for one figure per sample.

    Returns:
        … float64 in [0, 1]; NaN where no pixel lies on an object. Chance is the share of pixels on objects.
    """
    above = histograms.flip(-1).cumsum(-1).double()
    correct, found = above[..., 1, :], above.sum(-2)
    gained = histograms[..., 1, :].flip(-1).double()
    return (correct / found.clamp_min(1) * gained).sum(-1) / correct[..., -1]


def _boxes(layers: NDArray[np.bool_]) -> NDArray[np.int64]:
    """K×5 of K components in L×H×W: layer, top, bottom, left, right; bottom and right are just outside."""
    labels, _ = ndimage.label(layers, structure=_WITHIN_LAYERS)
    found = ndimage.find_objects(labels)
    corners = [(of.start, rows.start, rows.stop, columns.start, columns.stop) for of, rows, columns in found]
    return np.array(corners, dtype=np.int64).reshape(-1, 5)


def _overlaps(estimated: NDArray[np.int64], true: NDArray[np.int64], layers: int) -> NDArray[np.float64]:
    """Best overlap of any estimated box of each layer with any true box; NaN if there is no true one."""
    if len(true) == 0:
        return np.full(layers, np.nan)
    layer, top, bottom, left, right = (column[:, None] for column in estimated.T)
    _, top2, bottom2, left2, right2 = true.T
    height = np.minimum(bottom, bottom2) - np.maximum(top, top2)
    width = np.minimum(right, right2) - np.maximum(left, left2)
    common = height.clip(0) * width.clip(0)
    union = (bottom - top) * (right - left) + (bottom2 - top2) * (right2 - left2) - common
    best = np.zeros(layers)
    np.maximum.at(best, layer[:, 0], (common / union).max(1))
    return best
