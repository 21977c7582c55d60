"""What the Carlini & Wagner callback shows and says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from callbacks.probe import Drawing
from callbacks.probe_images import Chunk
from compresslens.attacks.paired import Pair
from compresslens.attacks.robustness import median_interval
from compresslens.attacks.victim import Victim, predict
from compresslens.reporting.metric import finite
from compresslens.samples import MODEL, REFERENCE, Columns

EXAMPLES = 5  # images in the figure


def pictures(chunk: Chunk, pair: Pair, victims: dict[str, Victim]) -> Columns:
    """The first attacked images of a chunk and what became of them; "index" is the position."""
    attacked = pair.attacked.cpu().numpy()
    found: Columns = {
        "index": chunk.positions[attacked][:EXAMPLES],
        "image": chunk.images[pair.attacked][:EXAMPLES].cpu().numpy(),
        "label": chunk.labels[pair.attacked][:EXAMPLES].cpu().numpy(),
    }
    for prefix, result in pair.results.items():
        adversarials = result.adversarials[:EXAMPLES]
        found[f"{prefix}adversarial"] = adversarials.cpu().numpy()
        found[f"{prefix}predicted"] = predict(victims[prefix].network, adversarials).cpu().numpy()
        found[f"{prefix}l2"] = result.l2[:EXAMPLES].cpu().numpy()
    return found


def figures(samples: Columns, found: Columns, class_names: Sequence[str]) -> dict[str, Drawing]:
    """What draws the examples and the success curve; nothing if nothing was attacked."""
    from compresslens.reporting.attack_figure import Example, Fooled, draw_examples, draw_success

    attacked = samples["cw_attacked"]
    if not attacked.any():
        return {}
    networks = {"model": MODEL} | ({"reference": REFERENCE} if "reference_cw_l2" in samples else {})
    examples = [
        Example(
            image=found["image"][row],
            label=class_names[found["label"][row]],
            fooled=[
                Fooled(
                    adversarial=found[f"{prefix}adversarial"][row],
                    predicted=class_names[found[f"{prefix}predicted"][row]],
                    l2=float(found[f"{prefix}l2"][row]),
                )
                for prefix in networks.values()
            ],
        )
        for row in range(min(EXAMPLES, len(found["index"])))
    ]
    theirs = samples["reference_cw_l2"][attacked] if "reference_cw_l2" in samples else None
    title = "Carlini & Wagner (L2)"
    return {
        "carlini_wagner_examples": partial(draw_examples, examples=examples, networks=list(networks), title=title),
        "carlini_wagner_success": partial(
            draw_success, l2=samples["cw_l2"][attacked], reference_l2=theirs, title=title
        ),
    }


def artefact_details(samples: Columns) -> dict[str, Any]:
    """How well the converted network and its twin agree, and the median distance by where perturbations came from."""
    attacked = samples["cw_attacked"]
    agrees = samples["cw_twin_agrees"]
    sources = [name for name in samples if name.startswith("cw_l2_")]
    medians = {name: finite(median_interval(samples[name][attacked])[0]) for name in sources}
    return {
        "agreement": float(agrees.mean()),
        "images": len(agrees),
        "median_l2": {name.removeprefix("cw_l2_"): median for name, median in medians.items()},
    }


def notes(samples: Columns, total: int) -> list[str]:
    """What a reader of the figures must know."""
    covered, attacked = len(samples["index"]), samples["cw_attacked"]
    found = []
    if covered < total:
        found.append(f"the time was up after {covered} of {total} images; the figures are of those")
    if not attacked.any():
        found.append("no image is classified correctly by all networks, so nothing was attacked")
    for prefix, name in (("", "model"), ("reference_", "reference")):
        values = samples.get(f"{prefix}cw_l2")
        failed = 0 if values is None else int(np.isinf(values[attacked]).sum())
        if failed:
            counted = "infinitely far in the median, left out of the mean"
            found.append(f"{failed} of {attacked.sum()} attacks on the {name} failed: {counted}")
    if "cw_twin_agrees" in samples:
        agreement = samples["cw_twin_agrees"].mean()
        found.append(f"attacked as converted to INT8; {agreement:.1%} of its predictions are those of its twin")
    return found
