"""Figures of features and maps beside the reference's, and what is left out where they are not defined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.manifold import trustworthiness as mean_trustworthiness
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from compresslens.embeddings.cka import cka_interval, linear_cka
from compresslens.embeddings.findings import (
    REFERENCE,
    Columns,
    Seen,
    displacement_column,
    embedding_details,
    embedding_metrics,
    feature_columns,
    whole_metric,
)
from compresslens.embeddings.tsne import Embedding, tsne
from compresslens.statistics import bootstrap_interval, paired_difference_interval

K = 4
LABELS = np.arange(60) % 3


def features(noise: float, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(3, 8))
    return (centres[LABELS] + noise * generator.normal(size=(60, 8))).astype(np.float32)


def embedded(values: Any, initial: Any = None) -> Embedding:
    return tsne(values, perplexity=5, initial=initial)


@pytest.fixture(scope="module")
def pair() -> tuple[Seen, Seen]:
    theirs, ours = features(0.5), features(1.5)
    map_of_reference = embedded(theirs)
    predicted = LABELS.astype(np.int64)
    model = Seen(ours, predicted, embedded(ours, map_of_reference.positions))
    return model, Seen(theirs, predicted, map_of_reference)


def columns_of(model: Seen, reference: Seen | None, k: int = K) -> Columns:
    columns, missing = feature_columns("", model, LABELS, k)
    assert missing == {}
    if reference is not None:
        columns |= feature_columns(REFERENCE, reference, LABELS, k)[0] | displacement_column(model, reference)
    return columns


# Against scikit-learn -------------------------------------------------------------------------------------------------


def leave_one_out(points: Any) -> Any:
    found = cross_val_predict(KNeighborsClassifier(1), points, LABELS, cv=LeaveOneOut())
    return (found == LABELS).astype(float)


def test_columns_against_scikit_learn(pair: tuple[Seen, Seen]) -> None:
    for prefix, seen in (("", pair[0]), ("reference_", pair[1])):
        assert seen.embedding is not None
        values, positions = seen.features.astype(np.float64), seen.embedding.positions
        columns, missing = feature_columns(prefix, seen, LABELS, 1)
        assert missing == {}
        assert columns[f"{prefix}embedding_knn"].tolist() == leave_one_out(values).tolist()
        assert columns[f"{prefix}tsne_knn"].tolist() == leave_one_out(positions).tolist()
        silhouettes = silhouette_samples(values, LABELS)
        assert columns[f"{prefix}embedding_silhouette"] == pytest.approx(silhouettes, abs=1e-9)
        columns = feature_columns(prefix, seen, LABELS, K)[0]
        for name, spaces in (("trustworthiness", (values, positions)), ("continuity", (positions, values))):
            mean = mean_trustworthiness(*spaces, n_neighbors=K)
            assert columns[f"{prefix}tsne_{name}"].mean() == pytest.approx(mean, abs=1e-12)
        assert np.stack([columns[f"{prefix}tsne_x"], columns[f"{prefix}tsne_y"]], 1).tolist() == positions.tolist()
        assert all(values.dtype == np.float64 and values.shape == (60,) for values in columns.values())


def test_metrics(pair: tuple[Seen, Seen]) -> None:
    model, reference = pair
    columns = columns_of(model, reference)
    metrics = embedding_metrics(columns, model, reference)
    names = {
        "knn_accuracy": "embedding_knn",
        "silhouette": "embedding_silhouette",
        "trustworthiness": "tsne_trustworthiness",
    }
    assert set(metrics) == {"embedding/cka", *(f"embedding/{name}" for name in names)}
    for name, column in names.items():
        metric = metrics[f"embedding/{name}"]
        assert (metric.value, metric.n) == (columns[column].mean(), 60)
        assert metric.reference == columns[f"reference_{column}"].mean()
        assert metric.ci95 == bootstrap_interval(columns[column])
    assert metrics["embedding/silhouette"].value < metrics["embedding/silhouette"].reference  # type: ignore[operator]
    cka = metrics["embedding/cka"]
    assert cka.value == linear_cka(model.features, reference.features)
    assert cka.ci95 == cka_interval(model.features, reference.features)
    assert cka.reference is None


def test_details(pair: tuple[Seen, Seen]) -> None:
    model, reference = pair
    columns = columns_of(model, reference)
    details = embedding_details(columns, model, reference, LABELS)
    for name, seen, prefix in (("model", model, ""), ("reference", reference, "reference_")):
        of_map, embedding = details["maps"][name], seen.embedding
        assert embedding is not None
        assert of_map["kl_divergence"] == pytest.approx(embedding.kl_divergence)
        assert (of_map["finished"], of_map["iterations"]) == (True, embedding.iterations)
        assert 0.9 < of_map["variance_kept"] <= 1 + 1e-9
        for column in ("tsne_knn", "tsne_trustworthiness", "tsne_continuity"):
            assert of_map[column]["value"] == columns[f"{prefix}{column}"].mean()
            assert set(of_map[column]) == {"value", "ci95", "n"}
    assert set(details["changes"]) == {"embedding_knn", "embedding_silhouette"}, "maps are not optimized alike"
    for name, change in details["changes"].items():
        ours, theirs = columns[name], columns[f"reference_{name}"]
        assert change["change"] == pytest.approx((ours - theirs).mean())
        assert change["ci95"] == list(paired_difference_interval(ours, theirs))
    assert details["changes"]["embedding_silhouette"]["ci95"][1] < 0, "the model's features are noisier"
    assert set(details["geometry_drift"]) == set(details["centroid_drift"]) == {"0", "1", "2"}
    assert details["displacement"]["value"] == columns["tsne_displacement"].mean()


def test_the_same_network_twice(pair: tuple[Seen, Seen]) -> None:
    reference = pair[1]
    columns = columns_of(reference, reference)
    details = embedding_details(columns, reference, reference, LABELS)
    metrics = embedding_metrics(columns, reference, reference)
    assert metrics["embedding/cka"].value == pytest.approx(1, abs=1e-12)
    assert columns["tsne_displacement"].tolist() == [0] * 60
    assert {name: change["change"] for name, change in details["changes"].items()} == dict.fromkeys(
        details["changes"], 0.0
    )
    assert list(details["geometry_drift"].values()) == pytest.approx([0, 0, 0], abs=1e-12)


def test_displacement_grows_with_the_noise(pair: tuple[Seen, Seen]) -> None:
    reference = pair[1]
    assert reference.embedding is not None
    moved = []
    for noise in (0.5, 1.0, 8.0):
        values = features(noise)
        seen = Seen(values, pair[0].predicted, embedded(values, reference.embedding.positions))
        moved.append(float(displacement_column(seen, reference)["tsne_displacement"].mean()))
    assert moved == sorted(moved)
    assert pearsonr(range(3), moved)[0] > 0.7


# What is not there ----------------------------------------------------------------------------------------------------


def test_without_a_reference(pair: tuple[Seen, Seen]) -> None:
    model, _ = pair
    columns = columns_of(model, None)
    metrics = embedding_metrics(columns, model, None)
    assert set(metrics) == {"embedding/knn_accuracy", "embedding/silhouette", "embedding/trustworthiness"}
    assert all(metric.reference is None for metric in metrics.values())
    assert set(embedding_details(columns, model, None, LABELS)) == {"maps"}


def test_without_maps(pair: tuple[Seen, Seen]) -> None:
    model, reference = (Seen(seen.features, seen.predicted, None) for seen in pair)
    columns = columns_of(model, reference)
    metrics = embedding_metrics(columns, model, reference)
    assert set(metrics) == {"embedding/knn_accuracy", "embedding/silhouette", "embedding/cka"}
    details = embedding_details(columns, model, reference, LABELS)
    assert details["maps"] == {}
    assert set(details) == {"maps", "changes", "geometry_drift"}
    assert displacement_column(pair[0], reference) == {}


def test_more_neighbours_than_the_map_admits(pair: tuple[Seen, Seen]) -> None:
    columns, missing = feature_columns("", pair[0], LABELS, 30)
    reason = "k is 30; with 60 samples it must be at least 1 and less than half of them"
    assert missing == {reason: ["trustworthiness", "continuity"]}
    assert {"embedding_knn", "embedding_silhouette", "tsne_x", "tsne_y", "tsne_knn"} == set(columns)
    assert set(embedding_metrics(columns, pair[0], None)) == {"embedding/knn_accuracy", "embedding/silhouette"}
    of_map = embedding_details(columns, pair[0], None, LABELS)["maps"]["model"]
    assert "tsne_knn" in of_map
    assert "tsne_continuity" not in of_map


@pytest.mark.parametrize("broken", ["model", "reference"])
def test_features_that_are_no_numbers_leave_the_others(pair: tuple[Seen, Seen], broken: str) -> None:
    values = features(1.0)
    values[7, 2] = np.nan
    bad = Seen(values, pair[0].predicted, None)
    assert not bad.finite
    model, reference = (bad, pair[1]) if broken == "model" else (pair[0], bad)
    columns, missing = feature_columns("", model, LABELS, K)
    of_reference, also_missing = feature_columns(REFERENCE, reference, LABELS, K)
    (reason,) = {**missing, **also_missing}
    assert "features contain NaN or infinity in 1 of 60 samples" in reason
    columns |= of_reference
    metrics = embedding_metrics(columns, model, reference)
    knn = metrics["embedding/knn_accuracy"]
    assert "embedding/cka" not in metrics
    if broken == "model":
        assert math.isnan(knn.value)
        assert knn.ci95 is None
        assert knn.reference == columns["reference_embedding_knn"].mean()
    else:
        assert (knn.value, knn.reference) == (columns["embedding_knn"].mean(), None)
    details = embedding_details(columns, model, reference, LABELS)
    assert set(details) == {"maps", "changes"}
    assert details["changes"] == {}
    assert len(details["maps"]) == 1


def test_one_class_only(pair: tuple[Seen, Seen]) -> None:
    model, reference = pair
    one = np.zeros(60, dtype=np.int64)
    columns = feature_columns("", model, one, K)[0] | feature_columns(REFERENCE, reference, one, K)[0]
    columns |= displacement_column(model, reference)
    metrics = embedding_metrics(columns, model, reference)
    assert metrics["embedding/knn_accuracy"].value == 1
    silhouette = metrics["embedding/silhouette"]
    assert math.isnan(silhouette.value)
    assert (silhouette.ci95, silhouette.reference) == (None, None)
    details = embedding_details(columns, model, reference, one)
    assert details["geometry_drift"] == {"0": None}
    assert "embedding_silhouette" not in details["changes"]


def test_constant_features(pair: tuple[Seen, Seen]) -> None:
    same = np.ones((60, 8), np.float32)
    model = Seen(same, pair[0].predicted, embedded(same))
    columns = columns_of(model, pair[1])
    metrics = embedding_metrics(columns, model, pair[1])
    assert math.isnan(metrics["embedding/cka"].value)
    assert metrics["embedding/cka"].ci95 is None
    assert metrics["embedding/silhouette"].value == 0
    assert metrics["embedding/knn_accuracy"].value < 0.5
    details = embedding_details(columns, model, pair[1], LABELS)
    assert details["displacement"]["value"] is None
    assert set(details["centroid_drift"].values()) == {None}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_handful_of_images(count: int) -> None:
    labels = LABELS[:count]
    model, reference = (Seen(features(noise)[:count], labels, None) for noise in (1.0, 2.0))
    columns, missing = feature_columns("", model, labels, K)
    assert list(columns) == ["embedding_silhouette"]
    assert list(missing.values()) == [["kNN accuracy"]]
    metrics = embedding_metrics(columns, model, reference)
    assert set(metrics) == {"embedding/silhouette"}
    assert metrics["embedding/silhouette"].n == count


def test_a_mean_of_what_is_not_defined_everywhere() -> None:
    values = np.array([1.0, math.nan])
    assert math.isnan(whole_metric(values).value)
    metric = whole_metric(np.ones(2), values)
    assert (metric.value, metric.ci95, metric.reference) == (1, (1, 1), None)
