"""What is noted of each image about class activation maps: columns of values, N images long.

The columns of the reference begin with "reference_", those of a second one, of another seed, with "second_reference_",
those of maps that know nothing with "centre_gaussian_" and "random_".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compresslens.cams.baselines import centre_gaussian_maps, random_maps
from compresslens.cams.box_accuracy import best_box_overlaps, pixel_histograms
from compresslens.cams.faithfulness import deletion_auc, insertion_auc, road
from compresslens.cams.localization import energy_in_mask, mask_area, pointing_game
from compresslens.cams.sanity import randomization_similarity
from compresslens.cams.similarity import pearson_correlation, structural_similarity, top_area_iou
from compresslens.samples import Columns

SECOND = "second_reference_"
BASELINES = ("centre_gaussian_", "random_")
BLUR = 11, 5.0  # of insertion, see there
FAITHFULNESS = ("insertion_auc", "deletion_auc")
AT_RANDOM = "_random"  # behind the names of columns: for a map that knows nothing, on the same network
STEPS = 10  # of insertion and deletion: against 128, the area of an image is off by 0.01, the mean by less than 0.005
ROAD_FRACTIONS = 0.2, 0.5, 0.8  # against 0.1 to 0.9: an image is off by up to 0.1, the mean by 0.03
SANITY_SHARES = (0.25, 0.5, 1.0)


def baseline_maps(indices: npt.NDArray[np.int64], masks: Tensor) -> dict[str, Tensor]:
    """Maps that know neither image nor network, N×H×W on the masks' device, by the prefix of their columns."""
    count, height, width = masks.shape
    centre, noise = centre_gaussian_maps(count, height, width), random_maps(indices, height, width)
    return dict(zip(BASELINES, (centre.to(masks.device), noise.to(masks.device)), strict=True))


def localization_columns(prefix: str, maps: Tensor, masks: Tensor) -> Columns:
    """Where maps N×H×W lie with regard to masks N×H×W bool: values per image, and N×100 overlaps of boxes."""
    return {
        f"{prefix}cam_pointing_game": pointing_game(maps, masks).cpu().numpy(),
        f"{prefix}cam_energy_in_mask": energy_in_mask(maps, masks).cpu().numpy(),
        f"{prefix}overlaps": best_box_overlaps(maps, masks).numpy(),
    }


def pixel_columns(prefix: str, maps: Tensor, masks: Tensor) -> Columns:
    """What the pixel-wise average precision needs, one row for all the images."""
    return {f"{prefix}pixels": pixel_histograms(maps, masks).sum(0, keepdim=True).cpu().numpy()}


def similarity_columns(prefix: str, maps: Tensor, others: Tensor) -> Columns:
    """How like the reference's maps of the same images and classes maps N×H×W are."""
    return {
        f"{prefix}cam_similarity": pearson_correlation(maps, others).cpu().numpy(),
        f"{prefix}cam_ssim": structural_similarity(maps, others).cpu().numpy(),
        f"{prefix}cam_top_area_iou": top_area_iou(maps, others).cpu().numpy(),
    }


def faithfulness_columns(
    prefix: str,
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    maps: Tensor,
    rows: npt.NDArray[np.bool_],
    ending: str = "",
) -> Columns:
    """Insertion and deletion on some of the N images; NaN on the others."""
    columns = {name: np.full(len(rows), np.nan) for name in FAITHFULNESS}
    if rows.any():
        part = _some(rows, images, classes, maps)
        columns["insertion_auc"][rows] = insertion_auc(network, *part, steps=STEPS, blur=blur_for(images)).numpy()
        columns["deletion_auc"][rows] = deletion_auc(network, *part, steps=STEPS).numpy()
    return {f"{prefix}cam_{name}{ending}": values for name, values in columns.items()}


def control_columns(
    prefix: str,
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    maps: Tensor,
    rows: npt.NDArray[np.bool_],
    indices: npt.NDArray[np.int64],
) -> Columns:
    """On some of the N images, with these indices in their split: insertion and deletion by random maps, and ROAD."""
    noise = random_maps(indices, *images.shape[2:]).to(images.device)
    columns = faithfulness_columns(prefix, network, images, classes, noise, rows, AT_RANDOM)
    scores = np.full(len(rows), np.nan)
    if rows.any():
        part = _some(rows, images, classes, maps)
        scores[rows] = road(network, *part, fractions=ROAD_FRACTIONS, samples=indices[rows]).numpy()
    return columns | {f"{prefix}cam_road": scores}


def _some(rows: npt.NDArray[np.bool_], images: Tensor, classes: Tensor, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    chosen = torch.from_numpy(rows).to(images.device)
    return images[chosen], classes[chosen], maps[chosen]


def blur_for(images: Tensor) -> tuple[int, float]:
    """Size (odd) and deviation of the blur that insertion starts from: RISE's for 224 pixels, at least 11 pixels."""
    side = min(images.shape[2:])
    size = min(max(BLUR[0], round(BLUR[0] * side / 224) | 1), (side - 1) // 2 * 2 + 1)
    return size, BLUR[1] * size / BLUR[0]


def sanity_columns(
    maps_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    rows: npt.NDArray[np.bool_],
) -> Columns:
    """Rank correlation with maps of shuffled weights, N×S, for some of the N images; NaN for the others."""
    similarities = np.full((len(rows), len(SANITY_SHARES)), np.nan)
    if rows.any():
        chosen = torch.from_numpy(rows).to(images.device)
        found = randomization_similarity(maps_of, network, images[chosen], classes[chosen], shares=SANITY_SHARES)
        similarities[rows] = found.cpu().numpy()
    return {"sanity": similarities}


def area_column(masks: Tensor) -> Columns:
    """Share of each image that its object takes: what energy in the mask is by chance."""
    return {"cam_mask_area": mask_area(masks).cpu().numpy()}
