"""What the t-SNE callback finds out, on rank zero, and what it shows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from callbacks.accuracy import Columns
from callbacks.probe import Findings
from callbacks.probe_images import Share, progress_bar
from compresslens.embeddings.findings import (
    MODEL,
    REFERENCE,
    Seen,
    displacement_column,
    embedding_details,
    embedding_metrics,
    feature_columns,
)
from compresslens.embeddings.tsne import Embedding, tsne
from compresslens.errors import UserError
from compresslens.reporting.tsne_figure import FeatureMap, Maps

NAMES = {MODEL: "model", REFERENCE: "reference"}


def evaluate(samples: Columns, share: Share, *, perplexity: float, neighbours: int) -> Findings:
    """Maps and measures.

    What the images do not admit (too few of them, features that are no numbers) is left out and said so: at the end of
    a fit that is no reason to lose what else was measured.
    """
    labels = samples["label"]
    columns: Columns = {"index": samples["index"]}
    seen: dict[str, Seen] = {}
    notes: list[str] = []
    start = None
    for prefix in (REFERENCE, MODEL):  # the model's map starts from the reference's
        if f"{prefix}features" not in samples:
            continue
        features, predicted = samples[f"{prefix}features"], samples[f"{prefix}predicted"]
        try:
            embedding = _embed(features, start, perplexity, share)
            start = embedding.positions if np.ptp(embedding.positions) > 0 else None
            if not embedding.finished:
                notes.append(f"the time was up before the map of the {NAMES[prefix]} was finished: do not compare it")
        except UserError as error:
            embedding = None
            notes.append(f"no t-SNE map of the {NAMES[prefix]}: {error}")
        seen[prefix] = Seen(features, predicted, embedding)
    details: dict[str, Any] = {
        "settings": {"perplexity": perplexity, "neighbours": neighbours},
        "images": {"covered": len(labels), "classes": len(np.unique(labels))},
    }
    reference = seen.get(REFERENCE)
    try:
        for prefix, of_network in seen.items():
            columns |= feature_columns(prefix, of_network, labels, neighbours)
        if reference is not None:
            columns |= displacement_column(seen[MODEL], reference)
        metrics = embedding_metrics(columns, seen[MODEL], reference)
        details |= embedding_details(columns, seen[MODEL], reference, labels)
    except UserError as error:
        metrics, columns = {}, {}
        notes.append(f"the features cannot be judged: {error}")
    return Findings(metrics=metrics, details={**details, "notes": notes}, columns=columns)


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
                    knn_accuracy=float(columns[f"{prefix}embedding_knn"].mean()),
                    trustworthiness=float(columns[f"{prefix}tsne_trustworthiness"].mean()),
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
