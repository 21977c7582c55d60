"""Figures of a network's features and of their t-SNE map, beside its reference's, image by image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from compresslens.embeddings.cka import cka_interval, linear_cka
from compresslens.embeddings.drift import centroid_drift, displacements, geometry_drift
from compresslens.embeddings.quality import continuity, knn_correct, silhouettes, trustworthiness
from compresslens.embeddings.tsne import Embedding
from compresslens.errors import UserError
from compresslens.reporting.metric import Metric, finite
from compresslens.samples import MODEL, REFERENCE, Columns, mean_summary, paired_change, whole_metric

METRICS = {
    "knn_accuracy": "embedding_knn",
    "silhouette": "embedding_silhouette",
    "trustworthiness": "tsne_trustworthiness",
}
OF_FEATURES = ("embedding_knn", "embedding_silhouette")
MAP_ONLY = ("tsne_knn", "tsne_trustworthiness", "tsne_continuity")
IN_WORDS = {
    "embedding_knn": "kNN accuracy",
    "embedding_silhouette": "silhouette",
    "tsne_knn": "kNN accuracy in the map",
    "tsne_trustworthiness": "trustworthiness",
    "tsne_continuity": "continuity",
}
LEAST_FOR_CKA = 5  # images


@dataclass(frozen=True)
class Seen:
    """What a network makes of the images.

    Attributes:
        features: N×D.
        predicted: N classes.
        embedding: the t-SNE map; None if there can be none.
    """

    features: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.int64]
    embedding: Embedding | None

    @property
    def finite(self) -> bool:
        """Whether all features are numbers."""
        return bool(np.isfinite(self.features).all())


def feature_columns(
    prefix: str, seen: Seen, labels: npt.NDArray[np.int64], k: int
) -> tuple[Columns, dict[str, list[str]]]:
    """Values per image, of the features and of the map if there is one; and what is missing, by the reason.

    Args:
        prefix: of the columns.
        seen: N images.
        labels: N classes.
        k: number of neighbours. Where it is too large for the number of images, what needs neighbours is missing.
    """
    features = seen.features.astype(np.float64)
    columns: Columns = {}
    measures: dict[str, Callable[[], npt.NDArray[Any]]] = {
        "embedding_knn": partial(knn_correct, features, labels, k),
        "embedding_silhouette": partial(silhouettes, features, labels),
    }
    if seen.embedding is not None:
        positions = seen.embedding.positions
        columns = {f"{prefix}tsne_x": positions[:, 0], f"{prefix}tsne_y": positions[:, 1]}
        measures |= {
            "tsne_knn": partial(knn_correct, positions, labels, k),
            "tsne_trustworthiness": partial(trustworthiness, features, positions, k),
            "tsne_continuity": partial(continuity, features, positions, k),
        }
    missing: dict[str, list[str]] = {}
    for name, measure in measures.items():
        try:
            columns[f"{prefix}{name}"] = measure().astype(np.float64)
        except UserError as error:
            missing.setdefault(str(error), []).append(IN_WORDS[name])
    return columns, missing


def displacement_column(model: Seen, reference: Seen) -> Columns:
    """How far each image lies from where it lies in the reference's map, in units of the maps' RMS radius."""
    if model.embedding is None or reference.embedding is None:
        return {}
    return {"tsne_displacement": displacements(model.embedding.positions, reference.embedding.positions)}


def embedding_metrics(samples: Columns, model: Seen, reference: Seen | None) -> dict[str, Metric]:
    """The `embedding/*` metrics, as far as the columns are there."""
    metrics = {}
    for name, column in METRICS.items():
        ours, theirs = samples.get(column), samples.get(f"{REFERENCE}{column}")
        if ours is None and theirs is not None:
            ours = np.full(len(theirs), math.nan)
        if ours is not None:
            metrics[f"embedding/{name}"] = whole_metric(ours, theirs)
    if reference is None or not (model.finite and reference.finite) or len(model.features) < LEAST_FOR_CKA:
        return metrics
    value = linear_cka(model.features, reference.features)
    interval = cka_interval(model.features, reference.features) if math.isfinite(value) else None
    metrics["embedding/cka"] = Metric(value, interval, len(model.features))
    return metrics


def embedding_details(
    samples: Columns, model: Seen, reference: Seen | None, labels: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """What is not a metric of its own: the maps, the changes in pairs of the same image, and how classes moved.

    Changes are of features alone: the two maps are optimized in different ways, so a difference of what is measured on
    them is no difference of the networks.
    """
    details: dict[str, Any] = {"maps": {}}
    for prefix, name, seen in ((MODEL, "model", model), (REFERENCE, "reference", reference)):
        if seen is None or seen.embedding is None:
            continue
        of_map: dict[str, Any] = {
            column: mean_summary(samples[f"{prefix}{column}"]) for column in MAP_ONLY if f"{prefix}{column}" in samples
        }
        of_map |= {"kl_divergence": finite(seen.embedding.kl_divergence), "finished": seen.embedding.finished}
        of_map |= {"iterations": seen.embedding.iterations, "variance_kept": finite(seen.embedding.variance)}
        details["maps"][name] = of_map
    if reference is None:
        return details
    details["changes"] = {
        name: change
        for name in OF_FEATURES
        if {name, f"{REFERENCE}{name}"} <= samples.keys()
        and (change := paired_change(samples[name], samples[f"{REFERENCE}{name}"])) is not None
    }
    if model.finite and reference.finite:
        drift = geometry_drift(model.features, reference.features, labels)
        details["geometry_drift"] = {str(label): finite(value) for label, value in drift.items()}
    if model.embedding is not None and reference.embedding is not None:
        moved = centroid_drift(model.embedding.positions, reference.embedding.positions, labels)
        details["centroid_drift"] = {str(label): finite(value) for label, value in moved.items()}
        details["displacement"] = mean_summary(samples["tsne_displacement"])
    return details
