"""Figures of explainability from the columns of `compresslens.cams.columns`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compresslens.cams.box_accuracy import max_box_accuracy, pixel_average_precision
from compresslens.cams.columns import AT_RANDOM, BASELINES, FAITHFULNESS, SANITY_SHARES, SECOND
from compresslens.cams.sanity import depends_on_weights
from compresslens.reporting.metric import Metric, finite
from compresslens.samples import MODEL, NAMES, REFERENCE, Columns, mean_metric, mean_summary, paired_change

LOCALIZATION = ("pointing_game", "energy_in_mask", "max_box_acc_v2")
SIMILARITY = {"pearson": "cam_similarity", "ssim": "cam_ssim", "top_area_iou": "cam_top_area_iou"}
SAMPLED = (*LOCALIZATION, *FAITHFULNESS)


def add_box_accuracy(samples: Columns) -> dict[str, tuple[float, ...]]:
    """Turns the overlaps into `cam_max_box_acc_v2` of each image; returns the thresholds that are best for all."""
    thresholds = {}
    for prefix in (MODEL, REFERENCE, *BASELINES):
        if f"{prefix}overlaps" in samples:
            overlaps = torch.from_numpy(samples.pop(f"{prefix}overlaps"))
            if overlaps.isnan().all():
                samples[f"{prefix}cam_max_box_acc_v2"] = np.full(len(overlaps), np.nan)
                continue
            accuracy = max_box_accuracy(overlaps)
            samples[f"{prefix}cam_max_box_acc_v2"] = accuracy.per_sample.numpy()
            thresholds[prefix] = accuracy.thresholds
    return thresholds


def map_metrics(samples: Columns) -> dict[str, Metric]:
    """The `cam/*` metrics of the columns that are there."""
    metrics = {}
    for name in SAMPLED:
        if f"cam_{name}" in samples:
            metrics[f"cam/{name}"] = mean_metric(samples[f"cam_{name}"], samples.get(f"reference_cam_{name}"))
    if "cam_similarity" in samples:
        metrics["cam/similarity"] = mean_metric(samples["cam_similarity"])
    return metrics


def changes(samples: Columns) -> dict[str, Any]:
    """Model minus reference, in pairs of the same image, with interval: 0 outside of it, and the two differ."""
    found = {
        name: paired_change(samples[f"cam_{name}"], samples[f"{REFERENCE}cam_{name}"])
        for name in SAMPLED
        if f"{REFERENCE}cam_{name}" in samples
    }
    return {name: change for name, change in found.items() if change is not None}


def faithfulness(samples: Columns) -> dict[str, Any] | None:
    """What insertion and deletion are for random maps, in pairs with the network's own; and ROAD. None: on no image."""
    if np.isnan(samples["cam_road"]).all():
        return None
    found: dict[str, Any] = {name: {} for name in (*FAITHFULNESS, "road")}
    for prefix, network in NAMES.items():
        if f"{prefix}cam_road" not in samples:
            continue
        for name in FAITHFULNESS:
            own, noise = samples[f"{prefix}cam_{name}"], samples[f"{prefix}cam_{name}{AT_RANDOM}"]
            found[name][network] = {"random": mean_summary(noise), "map_minus_random": paired_change(own, noise)}
        found["road"][network] = mean_summary(samples[f"{prefix}cam_road"])
    if f"{REFERENCE}cam_road" in samples:
        found["road"]["change"] = paired_change(samples["cam_road"], samples[f"{REFERENCE}cam_road"])
    return found


def similarities(samples: Columns) -> dict[str, Any]:
    """The measures of similarity, over all images and by which of the two networks is right; and their floor."""
    ours, theirs = samples["cam_right"], samples["reference_cam_right"]
    groups = {"all": np.ones(len(ours), dtype=bool), "both_right": ours & theirs, "only_model_right": ours & ~theirs}
    groups |= {"only_reference_right": ~ours & theirs, "both_wrong": ~ours & ~theirs}
    found: dict[str, Any] = {
        group: {name: mean_summary(samples[column][rows]) for name, column in SIMILARITY.items()}
        for group, rows in groups.items()
    }
    if f"{SECOND}cam_similarity" in samples:
        found["second_reference"] = _floor(samples)
    return found


def _floor(samples: Columns) -> dict[str, Any]:
    """How like the reference's the maps of a reference of another seed are, and the model's in comparison."""
    seconds = {name: samples[f"{SECOND}{column}"] for name, column in SIMILARITY.items()}
    return {
        **{name: mean_summary(values) for name, values in seconds.items()},
        "right": mean_summary(samples[f"{SECOND}cam_right"].astype(np.float64)),
        "model_minus_second": {
            name: paired_change(samples[SIMILARITY[name]], values) for name, values in seconds.items()
        },
    }


def baselines(samples: Columns) -> dict[str, Any]:
    """What maps that know nothing score."""
    return {
        prefix.rstrip("_"): {name: mean_summary(samples[f"{prefix}cam_{name}"]) for name in LOCALIZATION}
        for prefix in BASELINES
    }


def average_precision(pixels: Columns) -> dict[str, float | None]:
    """PxAP of model, reference and baselines."""
    names = NAMES | {prefix: prefix.rstrip("_") for prefix in BASELINES}
    return {
        name: finite(float(pixel_average_precision(torch.from_numpy(pixels[f"{prefix}pixels"].sum(0)))))
        for prefix, name in names.items()
        if f"{prefix}pixels" in pixels
    }


def sanity(similarities: npt.NDArray[np.float64]) -> dict[str, Any] | None:
    """Whether shuffling the weights destroys the maps (Adebayo et al. 2018); None if no map could be checked."""
    known = ~np.isnan(similarities).any(1)
    if not known.any():
        return None
    rows = torch.from_numpy(similarities[known])
    means = {str(share): float(value) for share, value in zip(SANITY_SHARES, rows.mean(0), strict=True)}
    return {"rank_correlation": means, "n": len(rows), "depends_on_weights": depends_on_weights(rows[:, -1])}
