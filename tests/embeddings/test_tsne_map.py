import multiprocessing
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE

from compresslens.embeddings import Embedding, displacements, knn_correct, schedule, trustworthiness, tsne
from compresslens.errors import UserError
from tests.references.embedding_measures import kl_divergence_reference

N = 240


def digits(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    features, labels = load_digits(return_X_y=True)
    return features[:n], labels[:n]


@pytest.fixture(scope="module")
def reference() -> Embedding:
    return tsne(digits()[0])


def test_the_map_is_as_good_as_scikit_learns(reference: Embedding) -> None:
    features, labels = digits()
    peer = TSNE(random_state=0).fit(features)
    assert reference.positions.shape == (N, 2)
    assert reference.positions.dtype == np.float64
    assert reference.positions.mean(0) == pytest.approx([0, 0], abs=1e-9)
    assert reference.finished
    assert reference.iterations == reference.planned == 500
    assert 0.9 < reference.variance <= 1
    assert reference.kl_divergence <= 1.05 * peer.kl_divergence_
    kept = trustworthiness(features, reference.positions).mean()
    assert kept >= trustworthiness(features, peer.embedding_).mean() - 0.005
    assert knn_correct(reference.positions, labels).mean() > 0.9


def test_the_divergence_is_that_of_the_definition(reference: Embedding) -> None:
    assert reference._affinities is not None
    affinities = reference._affinities.P.toarray()
    assert affinities.sum() == pytest.approx(1)
    assert np.diag(affinities).max() == 0
    expected = kl_divergence_reference(affinities, reference.positions)
    assert reference.kl_divergence == pytest.approx(expected, rel=1e-9)


def test_the_same_arguments_give_the_same_map_and_leave_no_trace(
    reference: Embedding, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    features = digits()[0]
    given = features.copy()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    again = tsne(torch.from_numpy(features))
    assert (again.positions == reference.positions).all()
    assert again.kl_divergence == reference.kl_divergence
    aligned = tsne(features, initial=reference.positions, seed=1)
    assert (aligned.positions == tsne(features, initial=reference.positions, seed=1).positions).all()
    assert (aligned.positions != tsne(features, initial=reference.positions, seed=2).positions).any()
    assert (features == given).all()
    assert (torch.get_rng_state() == states[0]).all()
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]
    assert random.getstate() == states[2]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.slow
def test_another_process_finds_the_same_map(reference: Embedding) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert (pool.apply(tsne, (digits()[0],)).positions == reference.positions).all()


def test_a_near_network_settles_where_the_reference_is() -> None:
    features, labels = digits(300)
    reference = tsne(features).positions[:, ::-1]  # mirrored, as no map of its features would come to lie by itself
    generator = np.random.default_rng(0)
    # another width, mirrored and scaled: what the map starts from is all that tells where samples are to be
    rotation = np.linalg.qr(generator.normal(size=(80, 80)))[0][:64]
    near = -3 * (features + generator.normal(size=features.shape)) @ rotation
    aligned, afresh = tsne(near, initial=reference), tsne(near)
    assert aligned.planned < 100
    assert displacements(aligned.positions, reference).mean() < 0.3
    assert displacements(afresh.positions, reference).mean() > 0.6
    assert aligned.kl_divergence < 1.1 * afresh.kl_divergence
    assert knn_correct(aligned.positions, labels).mean() > 0.9


def test_a_reference_that_is_turned_turns_the_map(reference: Embedding) -> None:
    features = digits()[0]
    turn = np.array([[0.6, 0.8], [0.8, -0.6]])
    plain = tsne(features, initial=reference.positions).positions
    turned = tsne(features, initial=reference.positions @ turn).positions
    assert displacements(turned, plain @ turn).mean() < displacements(turned, plain).mean()
    products = plain.T @ reference.positions
    assert products == pytest.approx(products.T, rel=1e-6)  # no rotation brings it nearer
    assert np.linalg.eigvalsh(products).min() >= 0


@pytest.mark.parametrize("kind", ["shuffled", "noise"])
def test_the_alignment_is_honest(reference: Embedding, kind: str) -> None:
    features, labels = digits()
    generator = np.random.default_rng(1)
    broken = generator.permutation(features) if kind == "shuffled" else generator.normal(size=features.shape)
    aligned = tsne(broken, initial=reference.positions)
    accuracy = knn_correct(aligned.positions, labels).mean()
    largest = np.bincount(labels).max() / N
    assert abs(accuracy - 0.1) < 4 * np.sqrt(0.1 * 0.9 / N)  # chance
    assert abs(knn_correct(broken, labels).mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / N)
    assert largest < 0.12
    assert displacements(aligned.positions, reference.positions).mean() > 0.8


def test_new_samples_find_their_place(reference: Embedding) -> None:
    features, labels = digits(N + 60)
    before = reference.positions.copy()
    new = reference.transform(features[N:])
    assert (reference.positions == before).all()
    assert new.shape == (60, 2)
    assert (new == reference.transform(features[N:])).all()
    assert reference.transform(features[N : N + 1]) == pytest.approx(new[:1], abs=1e-6)
    distances = np.linalg.norm(new[:, None] - reference.positions, axis=2)
    assert (labels[distances.argmin(1)] == labels[N:]).mean() > 0.85
    known = reference.transform(features[:50])
    size = np.sqrt((reference.positions**2).sum(1).mean())
    assert np.median(np.linalg.norm(known - reference.positions[:50], axis=1)) < 0.05 * size
    copy = pickle.loads(pickle.dumps(reference))
    assert (copy.transform(features[N:]) == new).all()
    with pytest.raises(UserError, match="the map is of 64 features per sample; these are 63"):
        reference.transform(features[:, :63])


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    tsne(digits(31)[0], perplexity=10, progress=lambda *at: told.append(at))
    assert told[0] == (19, 500)
    assert told[-1] == (500, 500)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert max(np.diff([done for done, _ in told])) <= schedule.EVERY


def test_a_failing_progress_bar_is_heard() -> None:
    def fail(done: int, planned: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tsne(digits(31)[0], perplexity=10, progress=fail)


@pytest.mark.parametrize(("looks", "done"), [(0, 0), (1, 19), (13, 250), (14, 269)])
def test_an_expired_budget_ends_it_cleanly(monkeypatch: pytest.MonkeyPatch, looks: int, done: int) -> None:
    clock = iter([0.0] * (1 + looks))
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: next(clock, 11.0)))
    stopped = tsne(digits(31)[0], perplexity=10, seconds=10)
    assert not stopped.finished
    assert stopped.iterations == done
    assert stopped.planned == 500
    assert np.isfinite(stopped.positions).all()
    assert stopped._affinities is not None
    expected = kl_divergence_reference(stopped._affinities.P.toarray(), stopped.positions)
    assert stopped.kl_divergence == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("width", [1, 2, 7, 300])
def test_features_of_any_width_have_a_map(width: int) -> None:
    features = np.random.default_rng(0).normal(size=(100, width)) * 1e-6 + 1
    embedding = tsne(features.astype(np.float32) if width > 7 else features)
    assert embedding.finished
    assert np.isfinite(embedding.positions).all()
    assert trustworthiness(features, embedding.positions).mean() > (0.9 if width < 7 else 0.6)


def test_equal_samples_lie_close_together() -> None:
    features = np.repeat(digits(40)[0], 3, axis=0)
    positions = tsne(features, perplexity=5).positions
    size = np.sqrt((positions**2).sum(1).mean())
    apart = np.linalg.norm(positions.reshape(40, 3, 2) - positions.reshape(40, 3, 2).mean(1, keepdims=True), axis=2)
    assert apart.max() < 0.2 * size
    few = tsne(np.repeat(np.eye(2), 50, axis=0))
    assert np.isfinite(few.positions).all()


def test_features_that_are_all_the_same_have_a_map_of_one_place(reference: Embedding) -> None:
    for initial in (None, reference.positions):
        embedding = tsne(np.full((N, 5), 0.1), initial=initial)
        assert (embedding.positions == 0).all()
        assert embedding.finished
        assert (embedding.kl_divergence, embedding.iterations) == (0, 0)
        assert embedding.transform(np.ones((3, 5))).tolist() == [[0, 0]] * 3
        with pytest.raises(UserError, match="the map is of 5 features"):
            embedding.transform(np.ones((3, 4)))


def test_what_cannot_be_mapped_is_refused(reference: Embedding) -> None:
    features = digits()[0]
    broken = features.copy()
    broken[5, 3] = np.inf
    with pytest.raises(UserError, match="91 samples, there are 90: take more, or lower the perplexity to 29"):
        tsne(features[:90])
    with pytest.raises(UserError, match="at least 4 samples, there are 3"):
        tsne(features[:3])
    with pytest.raises(UserError, match="NaN or infinity in 1 of 240"):
        tsne(broken)
    with pytest.raises(UserError, match="NaN or infinity"):
        reference.transform(broken)
    with pytest.raises(UserError, match="at least one of each"):
        tsne(np.zeros((0, 5)))
    with pytest.raises(UserError, match=r"it must be \(240, 2\)"):
        tsne(features, initial=reference.positions[1:])
    with pytest.raises(UserError, match="nothing to align with"):
        tsne(features, initial=np.ones((N, 2)))
    with pytest.raises(UserError, match="initial positions contain NaN"):
        tsne(features, initial=np.full((N, 2), np.nan))
    for setting in ({"perplexity": 0.5}, {"perplexity": float("nan")}, {"pca": 0}, {"seconds": -1}):
        with pytest.raises(UserError, match=next(iter(setting))):
            tsne(features, **setting)  # type: ignore[arg-type]
