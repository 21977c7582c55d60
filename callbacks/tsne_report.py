"""What the t-SNE callback finds out, on rank zero, and what it shows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from callbacks.probe import Findings
from callbacks.probe_images import Share, progress_bar
from compresslens.embeddings.findings import (
    Seen,
    displacement_column,
    embedding_details,
    embedding_metrics,
    feature_columns,
)
from compresslens.embeddings.tsne import Embedding, tsne
from compresslens.errors import UserError
from compresslens.reporting.tsne_figure import FeatureMap, Maps
from compresslens.samples import MODEL, NAMES, REFERENCE, Columns


def evaluate(samples: Columns, share: Share, notes: Sequence[str], *, perplexity: float, neighbours: int) -> Findings:
    """Maps and measures.

    What the images do not admit (too few of them, features that are no numbers) is left out and said so: at the end of
    a fit that is no reason to lose what else was measured.

    Args:
        samples: per image "index", "label", and of each network "features" and "predicted" behind its prefix.
        share: of the fixed images; it says how long the maps may take.
        notes: what a reader must know already.
        perplexity: of t-SNE.
        neighbours: in the measures.
    """
    labels = samples["label"]
    columns: Columns = {"index": samples["index"]}
    seen: dict[str, Seen] = {}
    said = list(notes)
    if len(labels) < share.total:
        said.append(f"{len(labels)} of {share.total} chosen images were among the batches; the figures are of those")
    start = None
    for prefix in (REFERENCE, MODEL):  # the model's map starts from the reference's
        if f"{prefix}features" not in samples:
            continue
        features, missing = samples[f"{prefix}features"], {}
        embedding = None
        try:
            embedding = _embed(features, start, perplexity, share)
        except UserError as error:
            missing = {str(error): ["t-SNE map"]}
        else:
            start = embedding.positions if np.ptp(embedding.positions) > 0 else None
            if not embedding.finished:
                said.append(f"the time was up before the map of the {NAMES[prefix]} was finished: do not compare it")
        seen[prefix] = Seen(features, samples[f"{prefix}predicted"], embedding)
        found, also_missing = feature_columns(prefix, seen[prefix], labels, neighbours)
        columns |= found
        for reason, measures in also_missing.items():
            missing.setdefault(reason, []).extend(measures)
        said += [f"no {', '.join(measures)} of the {NAMES[prefix]}: {reason}" for reason, measures in missing.items()]
    reference = seen.get(REFERENCE)
    if reference is not None:
        columns |= displacement_column(seen[MODEL], reference)
        said += _other_schedule(seen[MODEL].embedding, reference.embedding)
    details: dict[str, Any] = {
        "settings": {"perplexity": perplexity, "neighbours": neighbours},
        "images": {"wanted": share.total, "covered": len(labels), "classes": len(np.unique(labels))},
        **embedding_details(columns, seen[MODEL], reference, labels),
        "notes": said,
    }
    return Findings(embedding_metrics(columns, seen[MODEL], reference), details, columns)


def _other_schedule(model: Embedding | None, reference: Embedding | None) -> list[str]:
    """What to say of two maps if one was optimized longer than the other."""
    if model is None or reference is None or model.planned == reference.planned:
        return []
    return [
        f"the maps are optimized differently (the reference's by {reference.planned} iterations, the model's by "
        f"{model.planned} from there): compare what is measured on features, not what is measured on maps"
    ]


def _embed(
    features: npt.NDArray[np.float32], start: npt.NDArray[np.float64] | None, perplexity: float, share: Share
) -> Embedding:
    seconds = None if math.isinf(share.ends) else max(0.0, share.ends - time.monotonic())
    with progress_bar(share.title, 0, "iteration") as bar:

        def progress(done: int, planned: int) -> None:
            bar.total = planned
            bar.update(done - bar.n)

        return tsne(features, initial=start, perplexity=perplexity, seconds=seconds, progress=progress)


def maps_to_draw(findings: Findings, samples: Columns, class_names: Sequence[str]) -> Maps:
    """What figure and page show: the reference's map, if there is one, and the model's."""
    columns, maps = findings.columns, []
    for prefix in (REFERENCE, MODEL):
        if f"{prefix}tsne_x" in columns:
            maps.append(
                FeatureMap(
                    name=NAMES[prefix],
                    positions=np.stack([columns[f"{prefix}tsne_x"], columns[f"{prefix}tsne_y"]], 1),
                    predicted=samples[f"{prefix}predicted"],
                    knn_accuracy=_mean(columns.get(f"{prefix}embedding_knn")),
                    trustworthiness=_mean(columns.get(f"{prefix}tsne_trustworthiness")),
                )
            )
    cka = findings.metrics.get("embedding/cka")
    return Maps(
        maps=maps,
        index=samples["index"],
        labels=samples["label"],
        class_names=list(class_names),
        thumbnails=samples["thumbnail"],
        cka=None if cka is None else cka.value,
    )


def _mean(values: npt.NDArray[np.float64] | None) -> float:
    return math.nan if values is None else float(values.mean())
