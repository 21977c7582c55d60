import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import manifold, metrics, neighbors

from compresslens.embeddings import continuity, embedding_quality, knn_correct, silhouettes, trustworthiness
from compresslens.embeddings import distances as module
from compresslens.embeddings.distances import nearest_neighbours
from compresslens.errors import UserError
from compresslens.statistics import bootstrap_interval
from tests.references.embedding_measures import (
    distances_reference,
    knn_correct_reference,
    trustworthiness_reference,
)

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def sample(n: int, seed: int = 0, classes: int = 3, d: int = 6) -> Sample:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n)
    features = generator.normal(size=(n, d)) + 2 * np.eye(max(classes, d))[labels, :d]
    return features, features[:, :2] + generator.normal(size=(n, 2)), labels


samples = st.builds(sample, st.integers(10, 40), st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 8))


GROUPS = pytest.mark.parametrize("worthwhile", [9, 2], ids=["one by one", "by groups"])


@GROUPS
def test_neighbours_are_scikit_learns(monkeypatch: pytest.MonkeyPatch, worthwhile: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", 1000)  # several blocks
    monkeypatch.setattr(module, "_WORTHWHILE", worthwhile)
    features = sample(151)[0] + 1000  # far from the origin
    queries = sample(20, seed=1)[0] + 1000
    index = neighbors.NearestNeighbors(algorithm="kd_tree").fit(features)
    for asked in (None, queries):
        distances, indices = index.kneighbors(asked, 7)
        found = nearest_neighbours(features, 7, asked)
        assert (found[0] == indices).all()
        assert found[1] == pytest.approx(distances, abs=1e-9)


@GROUPS
def test_of_equally_near_points_the_first_are_neighbours(monkeypatch: pytest.MonkeyPatch, worthwhile: int) -> None:
    monkeypatch.setattr(module, "_WORTHWHILE", worthwhile)
    points = np.repeat(np.random.default_rng(0).normal(size=(3, 5)) + 50, 20, axis=0)
    indices, distances = nearest_neighbours(points, 4)
    assert (distances == 0).all()
    assert indices[0].tolist() == [1, 2, 3, 4]
    assert indices[59].tolist() == [40, 41, 42, 43]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 90), st.integers(0, 10**6), st.integers(1, 100))
def test_the_smallest_are_those_that_sorting_finds(k: int, more: int, seed: int, values: int) -> None:
    """Whether there are groups or not, and many equal values or few."""
    block = np.random.default_rng(seed).integers(0, values, (4, k + more)).astype(np.float64)
    block[0, 0] = np.inf
    found, places = module._smallest(block, k)
    assert (found == np.sort(block, axis=1)[:, :k]).all()
    assert (np.take_along_axis(block, places, 1) == found).all()
    assert all(len(set(row)) == k for row in places.tolist())


@settings(max_examples=25, deadline=None)
@given(samples, st.integers(1, 4))
def test_measures_equal_their_definitions(drawn: Sample, k: int) -> None:
    features, positions, labels = drawn
    assert (knn_correct(features, labels, k) == knn_correct_reference(features, labels, k)).all()
    kept = trustworthiness(features, positions, k)
    assert kept == pytest.approx(trustworthiness_reference(features, positions, k), abs=1e-12)
    assert continuity(features, positions, k) == pytest.approx(
        trustworthiness_reference(positions, features, k), abs=1e-12
    )
    assert ((kept >= 0) & (kept <= 1)).all()


@settings(max_examples=15, deadline=None)
@given(samples, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(drawn: Sample, random: object) -> None:
    features, positions, labels = drawn
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(labels))  # type: ignore[attr-defined]
    here = embedding_quality(features, positions, labels, 3)
    there = embedding_quality(features[order], positions[order], labels[order], 3)
    for name in ("knn_features", "knn_map", "silhouette", "trustworthiness", "continuity"):
        expected = getattr(here, name)[order].astype(float)
        assert getattr(there, name).astype(float) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_means_are_scikit_learns() -> None:
    features, positions, labels = sample(400)
    expected = manifold.trustworthiness(features, positions, n_neighbors=12)
    assert trustworthiness(features, positions, 12).mean() == pytest.approx(expected, abs=1e-12)
    expected = manifold.trustworthiness(positions, features, n_neighbors=12)
    assert continuity(features, positions, 12).mean() == pytest.approx(expected, abs=1e-12)
    assert silhouettes(features, labels) == pytest.approx(metrics.silhouette_samples(features, labels), abs=1e-10)
    one_out = [
        neighbors.KNeighborsClassifier(1).fit(np.delete(features, i, 0), np.delete(labels, i)).predict([features[i]])[0]
        for i in range(60)
    ]
    assert (knn_correct(features, labels, 1)[:60] == (np.array(one_out) == labels[:60])).all()


def test_extremes_of_trustworthiness() -> None:
    line = np.arange(21.0)[:, None]
    assert (trustworthiness(line, line, 5) == 1).all()
    # The neighbours of the first in the map are the farthest in truth.
    worst = np.concatenate([[[-1.0]], 20 - line[1:]])
    assert trustworthiness(line, worst, 5)[0] == pytest.approx(0, abs=1e-12)


def test_a_tie_of_votes_goes_to_the_nearest() -> None:
    points = np.array([[0.0], [1.0], [2.1], [3.3], [4.6]])
    labels = [1, 0, 1, 1, 0]
    # of the first: 0 and 1, one vote each, and 0 is nearer
    assert not knn_correct(points, labels, 2)[0]
    assert knn_correct(points, [0, 0, 1, 1, 0], 2)[0]


def test_constant_features_and_rare_classes() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 0])
    same = np.full((10, 4), 0.1)
    assert (silhouettes(same, labels) == 0).all()
    assert (trustworthiness(same, np.random.default_rng(0).normal(size=(10, 2)), 3) == 1).all()
    assert knn_correct(same, labels, 3).tolist() == [label == 0 for label in labels]  # all alike: the first vote
    features = np.random.default_rng(0).normal(size=(10, 3))
    assert silhouettes(features, labels)[8] == 0
    assert silhouettes(features, np.arange(10)).tolist() == [0] * 10
    assert np.isnan(silhouettes(features, np.zeros(10))).all()


def test_the_summary_has_means_and_intervals() -> None:
    features, positions, labels = sample(60)
    quality = embedding_quality(features, positions, labels, 5)
    summary = quality.summary()
    assert list(summary) == ["knn_features", "knn_map", "silhouette", "trustworthiness", "continuity"]
    for name, (mean, interval) in summary.items():
        values = getattr(quality, name)
        assert mean == values.mean()
        assert interval == bootstrap_interval(values)
    alone = embedding_quality(features, positions, np.zeros(60), 5).summary()
    assert np.isnan(alone["silhouette"][0])
    assert alone["silhouette"][1] is None
    assert alone["knn_map"] == (1, (1, 1))


def test_measures_refuse_what_does_not_fit() -> None:
    features, positions, labels = sample(20)
    broken = features.copy()
    broken[3, 1] = np.nan
    with pytest.raises(UserError, match="NaN or infinity in 1 of 20 samples"):
        knn_correct(broken, labels)
    with pytest.raises(UserError, match="less than half"):
        trustworthiness(features, positions, 10)
    with pytest.raises(UserError, match="between 1 and 19"):
        knn_correct(features, labels, 20)
    with pytest.raises(UserError, match=r"labels have the shape \(19,\)"):
        silhouettes(features, labels[:-1])
    with pytest.raises(UserError, match="19 in the map"):
        continuity(features, positions[:-1], 3)
    with pytest.raises(UserError, match="at least one of each"):
        knn_correct(np.zeros((0, 3)), [])


def test_distances_of_the_reference() -> None:
    assert distances_reference([[0, 0], [3, 4]])[0, 1] == 5
