import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslens.embeddings import cka, cka_interval, cka_without_each, linear_cka
from compresslens.errors import UserError
from tests.references.embedding_measures import cka_reference


def pair(n: int, d: int, e: int, seed: int = 0, shared: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, d)) * generator.uniform(0.1, 3, size=d) + 5
    y = shared * x @ generator.normal(size=(d, e)) + generator.normal(size=(n, e))
    return x, y


pairs = st.builds(pair, st.integers(6, 30), st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))


@settings(max_examples=40, deadline=None)
@given(pairs, st.booleans())
def test_cka_equals_its_definition(drawn: tuple[np.ndarray, np.ndarray], unbiased: bool) -> None:
    x, y = drawn
    expected = cka_reference(x - x.mean(0), y - y.mean(0), unbiased)
    assert linear_cka(x, y, unbiased=unbiased) == pytest.approx(expected, abs=1e-8)


@settings(max_examples=20, deadline=None)
@given(pairs, st.integers(0, 10**6), st.floats(1e-3, 1e3), st.booleans())
def test_cka_is_invariant(drawn: tuple[np.ndarray, np.ndarray], seed: int, scale: float, unbiased: bool) -> None:
    x, y = drawn
    generator = np.random.default_rng(seed)
    rotation = np.linalg.qr(generator.normal(size=(x.shape[1], x.shape[1])))[0]
    order = generator.permutation(len(x))
    value = linear_cka(x, y, unbiased=unbiased)
    assert linear_cka((scale * x @ rotation + 7)[order], y[order], unbiased=unbiased) == pytest.approx(value, abs=1e-7)
    assert linear_cka(y, x, unbiased=unbiased) == pytest.approx(value, abs=1e-9)
    assert linear_cka(x, scale * x @ rotation, unbiased=unbiased) == pytest.approx(1, abs=1e-7)
    assert -1 <= value <= 1


def test_only_the_unbiased_estimate_is_zero_for_wide_independent_features() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(100, 400)), generator.normal(size=(100, 300))
    assert linear_cka(x, y) == pytest.approx(0, abs=0.03)
    assert linear_cka(x, y, unbiased=False) > 0.7


def test_wide_features_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cka, "_ROWS", 7)
    x, y = pair(20, 300, 200)
    assert linear_cka(x, y) == pytest.approx(cka_reference(x, y), abs=1e-8)


@pytest.mark.parametrize("widths", [(3, 5), (60, 70)])
def test_leaving_out_in_closed_form_is_leaving_out(widths: tuple[int, int]) -> None:
    x, y = pair(12, *widths, shared=0.3)
    expected = [linear_cka(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(12)]
    assert cka_without_each(x, y) == pytest.approx(expected, abs=1e-9)


def test_the_interval_is_of_the_right_width() -> None:
    def draw(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.integers(5, size=n)
        common = 2 * np.eye(5)[labels] + generator.normal(size=(n, 5))
        return common, common + generator.normal(size=(n, 5))

    generator = np.random.default_rng(0)
    truth = linear_cka(*draw(generator, 200_000))
    intervals = [cka_interval(*draw(generator, 200)) for _ in range(400)]
    covered = np.mean([low <= truth <= high for low, high in intervals])  # type: ignore[misc]
    assert 0.92 <= covered <= 0.98


def test_the_interval_of_the_same_features_is_a_point() -> None:
    x, _ = pair(50, 8, 8)
    assert cka_interval(x, 2 * x + 1) == pytest.approx((1, 1), abs=1e-9)
    low, high = cka_interval(x, x + np.random.default_rng(1).normal(size=x.shape) * 1e-3) or (0.0, 0.0)
    assert 0.99 < low < high <= 1


def test_constant_features_have_no_cka() -> None:
    x, y = pair(20, 5, 4)
    same = np.full((20, 3), 0.1)
    for unbiased in (True, False):
        assert np.isnan(linear_cka(x, same, unbiased=unbiased))
        assert np.isnan(linear_cka(same, y, unbiased=unbiased))
    assert cka_interval(x, same) is None


def test_cka_refuses_what_does_not_fit() -> None:
    x, y = pair(20, 5, 4)
    with pytest.raises(UserError, match="20 samples but the reference's are of 19"):
        linear_cka(x, y[:-1])
    with pytest.raises(UserError, match="at least 4 are needed"):
        linear_cka(x[:3], y[:3])
    with pytest.raises(UserError, match="at least 5 are needed"):
        cka_interval(x[:4], y[:4])
    with pytest.raises(UserError, match="features of the reference contain NaN"):
        linear_cka(x, np.where(y > 9, np.nan, np.nan))
    with pytest.raises(ValueError, match="between 0 and 1"):
        cka_interval(x, y, 1.0)
