"""What the class activation map callback shows and says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from callbacks.probe import Drawing
from callbacks.probe_images import Chunk
from compresslens.cams import findings as overall
from compresslens.cams.columns import BASELINES
from compresslens.cams.findings import LOCALIZATION
from compresslens.samples import MODEL, REFERENCE, Columns, mean_metric

EXAMPLES = 6  # images in the figure
NAMES = {"cam": "CAM", "grad_cam": "Grad-CAM", "grad_cam_plus_plus": "Grad-CAM++", "hires_cam": "HiResCAM"}
NAMES |= {"layer_cam": "LayerCAM", "score_cam": "Score-CAM", "eigen_cam": "Eigen-CAM"}
TITLES = {"pointing_game": "pointing game", "energy_in_mask": "energy in mask", "max_box_acc_v2": "MaxBoxAccV2"}


def pictures(chunk: Chunk, maps: dict[str, Tensor], columns: Columns) -> Columns:
    """The first images of a chunk with their maps; "index" is the position."""
    found: Columns = {
        "index": chunk.positions[:EXAMPLES],
        "sample": chunk.indices[:EXAMPLES],
        "image": chunk.images[:EXAMPLES].float().cpu().numpy(),
        "label": chunk.labels[:EXAMPLES].cpu().numpy(),
    }
    if chunk.masks is not None:
        found["mask"] = chunk.masks[:EXAMPLES].cpu().numpy()
    if "cam_similarity" in columns:
        found["similarity"] = columns["cam_similarity"][:EXAMPLES]
    for prefix, of_network in maps.items():
        found[f"{prefix}map"] = of_network[:EXAMPLES].cpu().numpy()
        for name in ("probability", "predicted"):
            found[f"{prefix}{name}"] = columns[f"{prefix}cam_{name}"][:EXAMPLES]
    return found


def kept(found: Columns, class_names: Sequence[str]) -> Columns:
    """The pictures in 8 bits, from which reports draw several models side by side; "index" is that in the split."""
    arrays = {name: found[name] for name in found if name.endswith(("label", "predicted"))}
    arrays["index"] = found["sample"]
    for name in found:
        if name.endswith(("map", "image")):
            arrays[name] = np.round(255 * np.clip(found[name], 0, 1)).astype(np.uint8)
    image = arrays["image"]
    arrays["image"] = np.broadcast_to(image, (len(image), 3, *image.shape[2:])).transpose(0, 2, 3, 1)
    return {**arrays, "class_names": np.array(class_names, dtype=str)}


def figures(samples: Columns, found: Columns, class_names: Sequence[str], method: str) -> dict[str, Drawing]:
    """What draws the examples, and where there are masks the measures of localization beside their baselines."""
    from compresslens.reporting.cam_figure import Example, Look, draw_examples, draw_localization

    networks = {"reference": REFERENCE} if "reference_map" in found else {}
    networks |= {"model": MODEL}
    examples = [
        Example(
            image=found["image"][row],
            label=class_names[found["label"][row]],
            mask=found["mask"][row] if "mask" in found else None,
            looks=[
                Look(
                    map=found[f"{prefix}map"][row],
                    probability=float(found[f"{prefix}probability"][row]),
                    predicted=class_names[found[f"{prefix}predicted"][row]],
                )
                for prefix in networks.values()
            ],
            similarity=float(found["similarity"][row]) if "similarity" in found else math.nan,
        )
        for row in range(min(EXAMPLES, len(found["index"])))
    ]
    name = NAMES[method]
    drawings: dict[str, Drawing] = {
        "cam_examples": partial(
            draw_examples, examples=examples, networks=list(networks), title=f"{name} of the true class"
        )
    }
    if "cam_pointing_game" in samples:
        sources = {"model": MODEL, "reference": REFERENCE} if "reference" in networks else {"model": MODEL}
        sources |= {prefix.rstrip("_").replace("_", " "): prefix for prefix in BASELINES}
        measures = {
            TITLES[measure]: {name: mean_metric(samples[f"{prefix}cam_{measure}"]) for name, prefix in sources.items()}
            for measure in LOCALIZATION
        }
        area = float(np.nanmean(samples["cam_mask_area"]))
        title = f"Where the maps lie ({name})"
        drawings["cam_localization"] = partial(draw_localization, measures=measures, area=area, title=title)
    return drawings


def details(
    samples: Columns,
    pixels: Columns,
    thresholds: dict[str, tuple[float, ...]],
    total: int,
    grids: dict[str, Any],
    of_mosaics: list[str],
) -> dict[str, Any]:
    """What is not a metric of its own.

    Args:
        samples: of all ranks.
        pixels: histograms for the pixel-wise average precision; empty where the data has no masks.
        thresholds: of boxes, by the prefix of the columns.
        total: number of images that were to be looked at.
        grids: of the Grid Pointing Game.
        of_mosaics: notes on it.
    """
    found: dict[str, Any] = {
        "images": {"wanted": total, "covered": len(samples["index"])},
        "sanity": overall.sanity(samples["sanity"]),
        "faithfulness": overall.faithfulness(samples),
        "grid_pointing": grids,
    }
    if pixels:
        found["pxap"] = overall.average_precision(pixels)
        found["baselines"] = overall.baselines(samples)
        found["mask_area"] = overall.mean_summary(samples["cam_mask_area"])
        found["box_thresholds"] = {prefix.rstrip("_") or "model": list(best) for prefix, best in thresholds.items()}
    if "cam_similarity" in samples:
        found["changes"] = overall.changes(samples)
        found["similarity"] = overall.similarities(samples)
    return found | {"notes": notes(samples, found, of_mosaics)}


def notes(samples: Columns, details: dict[str, Any], of_mosaics: list[str]) -> list[str]:
    """What a reader of the figures must know."""
    found, images = [], details["images"]
    if images["covered"] < images["wanted"]:
        found.append(
            f"the time was up after {images['covered']} of {images['wanted']} images; the figures are of those"
        )
    if "cam_mask_area" not in samples:
        found.append("the data has no masks of the objects: localization is judged by the Grid Pointing Game alone")
    elif empty := int(np.isnan(samples["cam_pointing_game"]).sum()):
        found.append(f"{empty} images have an empty mask and are left out where masks are needed")
    for prefix, name in ((MODEL, "model"), (REFERENCE, "reference")):
        blank = int(samples.get(f"{prefix}cam_blank", np.zeros(0)).sum())
        if blank:
            found.append(f"{blank} maps of the {name} are constant: nothing speaks for the class")
    if details["sanity"] is not None and not details["sanity"]["depends_on_weights"]:
        found.append(
            "the maps hardly change when the weights are shuffled: they do not show what the model has learned"
        )
    return found + of_mosaics
