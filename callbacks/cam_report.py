"""What the class activation map callback shows and says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from callbacks.accuracy import Columns
from callbacks.probe import Drawing
from callbacks.probe_images import Chunk
from compresslens.cams.columns import BASELINES, MODEL, REFERENCE
from compresslens.cams.findings import LOCALIZATION, mean_metric

EXAMPLES = 6  # images in the figure
TITLES = {"pointing_game": "pointing game", "energy_in_mask": "energy in mask", "max_box_acc_v2": "MaxBoxAccV2"}


def pictures(chunk: Chunk, maps: dict[str, Tensor], columns: Columns) -> Columns:
    """The first images of a chunk with their maps; "index" is the position."""
    found: Columns = {
        "index": chunk.positions[:EXAMPLES],
        "image": chunk.images[:EXAMPLES].float().cpu().numpy(),
        "label": chunk.labels[:EXAMPLES].cpu().numpy(),
    }
    if chunk.masks is not None:
        found["mask"] = chunk.masks[:EXAMPLES].cpu().numpy()
    for prefix, of_network in maps.items():
        found[f"{prefix}map"] = of_network[:EXAMPLES].cpu().numpy()
        for name in ("probability", "predicted"):
            found[f"{prefix}{name}"] = columns[f"{prefix}cam_{name}"][:EXAMPLES]
    return found


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
        )
        for row in range(min(EXAMPLES, len(found["index"])))
    ]
    name = method.replace("_", "-")
    drawings: dict[str, Drawing] = {
        "cam_examples": partial(draw_examples, examples=examples, networks=list(networks), title=f"Maps by {name}")
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
