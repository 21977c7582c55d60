import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from torchmetrics.functional.classification import multiclass_calibration_error

from compresslens.statistics import (
    bootstrap_interval,
    expected_calibration_error,
    paired_difference_interval,
    wilson_interval,
)

numbers = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("n", [1, 2, 20, 10_000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_wilson_interval_equals_scipy(n: int, share: float, confidence: float) -> None:
    successes = round(share * n)
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.01, 0.999))
def test_wilson_interval_holds_the_share_and_mirrors(counts: tuple[int, int], confidence: float) -> None:
    successes, n = counts
    low, high = wilson_interval(successes, n, confidence)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1
    mirrored = wilson_interval(n - successes, n, confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_wilson_interval_refuses_impossible_counts(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"no samples|between 0 and"):
        wilson_interval(successes, n, confidence)


def test_bootstrap_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=300)
    for statistic in (np.mean, np.median):
        expected = bootstrap((values,), statistic, n_resamples=4000, method="percentile", rng=2).confidence_interval
        found = bootstrap_interval(values, statistic, n_resamples=4000, seed=3)
        assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_bootstrap_interval_of_the_mean_is_that_of_a_loop() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert bootstrap_interval(values) == pytest.approx(
        bootstrap_interval(values, lambda v: v.sum() / len(v)), abs=1e-12
    )


def test_bootstrap_interval_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=50)
    whole = bootstrap_interval(values, n_resamples=200)
    monkeypatch.setattr("compresslens.statistics._CHUNK", 50 * 7)
    assert bootstrap_interval(values, n_resamples=200) == whole


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = bootstrap_interval(generator.normal(size=80), n_resamples=300, confidence=0.9, seed=trial)
        hits += low <= 0 <= high
    assert hits / 300 == pytest.approx(0.9, abs=0.05)


@given(st.lists(numbers, min_size=1, max_size=30), st.integers(0, 100))
def test_bootstrap_interval_is_repeatable_and_within_the_range(values: list[float], seed: int) -> None:
    low, high = bootstrap_interval(values, n_resamples=50, seed=seed)
    assert (low, high) == bootstrap_interval(values, n_resamples=50, seed=seed)
    slack = 1e-9 * max(1.0, max(abs(v) for v in values))
    assert min(values) - slack <= low <= high <= max(values) + slack


def test_bootstrap_interval_of_one_sample_has_no_width() -> None:
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, float("nan")], [float("inf")]])
def test_bootstrap_interval_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        bootstrap_interval(values)
    with pytest.raises(ValueError, match="n_resamples"):
        bootstrap_interval([1.0], n_resamples=0)


@given(st.lists(numbers, min_size=1, max_size=30), st.floats(-10, 10))
def test_a_constant_difference_has_no_width(values: list[float], shift: float) -> None:
    a = np.array(values)
    low, high = paired_difference_interval(a + shift, a, n_resamples=20)
    slack = 1e-9 * max(1.0, float(np.abs(a).max()))
    assert low == pytest.approx(shift, abs=slack)
    assert high == pytest.approx(shift, abs=slack)


def test_pairing_narrows_the_interval() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.normal(size=200)
    a, b = difficulty + 0.1 * generator.normal(size=200), difficulty - 0.1
    low, high = paired_difference_interval(a, b)
    assert low < 0.1 < high
    assert low > 0
    assert high - low < 0.2 * (bootstrap_interval(a)[1] - bootstrap_interval(a)[0])
    assert paired_difference_interval(b, a) == pytest.approx((-high, -low), abs=1e-12)


def test_paired_difference_refuses_different_samples() -> None:
    with pytest.raises(ValueError, match="same samples"):
        paired_difference_interval([1.0], [1.0, 2.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_torchmetrics(bins: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(3 * torch.randn(500, 4, generator=generator, dtype=dtype), 1)
    probabilities[:40] = torch.eye(4, dtype=dtype)[torch.arange(40) % 4]
    probabilities[40:60] = torch.tensor([0.6, 0.4, 0, 0], dtype=dtype)  # on an edge
    labels = torch.randint(4, (500,), generator=generator)
    expected = multiclass_calibration_error(probabilities, labels, 4, n_bins=bins, norm="l1")
    confidences, predictions = probabilities.max(1)
    found = expected_calibration_error(confidences.numpy(), (predictions == labels).numpy(), bins)
    assert found == pytest.approx(expected.item(), abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 20))
def test_calibration_error_equals_a_loop(samples: list[tuple[float, bool]], bins: int) -> None:
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64).tolist()
    expected = 0.0
    for low, high in zip(edges, [*edges[1:], 2.0], strict=True):
        members = [(confidence, right) for confidence, right in samples if low <= confidence < high]
        expected += abs(sum(confidence - right for confidence, right in members)) / len(samples)
    confidences, correct = zip(*samples, strict=True)
    found = expected_calibration_error(confidences, correct, bins)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 <= found <= 1


@pytest.mark.parametrize(
    ("confidences", "correct", "bins"),
    [([], [], 15), ([0.5], [True, False], 15), ([1.5], [True], 15), ([float("nan")], [True], 15), ([0.5], [True], 0)],
)
def test_calibration_error_refuses_bad_input(confidences: list[float], correct: list[bool], bins: int) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        expected_calibration_error(confidences, correct, bins)
