from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslens.errors import UserError
from compresslens.low_rank import cp
from tests.low_rank.layers import convolution
from tests.references import low_rank as reference

sizes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(2, 3))


def error(layer: object, rank: int) -> float:
    weight = reference.cp_weight(*reference.weights(cp.decompose(layer, [rank])))  # type: ignore[arg-type]
    return reference.squared_error(weight, reference.array(layer.weight))  # type: ignore[attr-defined]


@given(sizes, st.data())
@settings(deadline=None, max_examples=30)
def test_no_worse_than_its_start(shape: tuple[int, ...], data: st.DataObject) -> None:
    """Whose error is known: the terms that are left out are orthogonal to those that are kept, and to each other."""
    layer = convolution(*shape)
    lengths = np.array([length for length, _ in reference.orthogonal_terms(reference.array(layer.weight))])
    np.testing.assert_allclose(cp.spectra(layer)[0], lengths, atol=1e-9)
    assert (lengths**2).sum() == pytest.approx(float(layer.weight.detach().square().sum()))
    rank = data.draw(st.integers(1, len(lengths)))
    assert error(layer, rank) <= (lengths[rank:] ** 2).sum() + 1e-12


def test_the_start_is_the_longest_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = convolution(5, 4, 3, 2)
    monkeypatch.setattr(cp, "SWEEPS", 0)
    weight = reference.cp_weight(*reference.weights(cp.decompose(layer, [6])))
    terms = reference.orthogonal_terms(reference.array(layer.weight))[:6]
    expected = sum(length * np.einsum("o,i,y,x->oiyx", *vectors) for length, vectors in terms)
    np.testing.assert_allclose(weight, expected, atol=1e-9)


def test_as_good_as_plain_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many sweeps, with and without the ridge."""
    layer, rank = convolution(5, 4, 3, 3), 4
    kernel = reference.array(layer.weight)
    factors = [
        np.stack([vectors[mode] * length**0.25 for length, vectors in reference.orthogonal_terms(kernel)[:rank]], 1)
        for mode in range(4)
    ]
    monkeypatch.setattr(cp, "LEAST_GAIN", 0.0)
    errors = []
    for sweeps in (0, 1, 3, 100):
        monkeypatch.setattr(cp, "SWEEPS", sweeps)
        slow = reference.squared_error(reference.alternating_least_squares(kernel, factors, sweeps), kernel)
        errors.append(error(layer, rank))
        assert errors[-1] == pytest.approx(slow, rel=0.02)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_all_four_factors_have_equal_lengths() -> None:
    layer = convolution(8, 6, 3, 3)
    weights = reference.weights(cp.decompose(layer, [5]))
    lengths = [np.sqrt((weight**2).sum(axis=(1, 2, 3))) for weight in weights[:3]]
    lengths.append(np.sqrt((weights[3] ** 2).sum(axis=(0, 2, 3))))
    for other in lengths[1:]:
        np.testing.assert_allclose(other, lengths[0], rtol=1e-9)


def test_terms_do_not_cancel() -> None:
    """A kernel that has no best approximation: unbounded least squares would follow it to infinity."""
    generator = np.random.default_rng(0)
    a, b, c = (generator.normal(size=(size, 2)) for size in (6, 5, 3))
    kernel = sum(np.einsum("o,i,y->oiy", a[:, p], b[:, q], c[:, r]) for p, q, r in ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
    layer = convolution(6, 5, 3, 2, bias=False)
    layer.weight.data.copy_(layer.weight.new_tensor(kernel[..., None] * np.array([1.0, 0.5])))
    reduce, vertical, horizontal, expand = (w.reshape(len(w), -1) for w in reference.weights(cp.decompose(layer, [2])))
    terms = np.prod([np.linalg.norm(w, axis=1) for w in (reduce, vertical, horizontal, expand.T)], axis=0)
    assert np.sqrt((terms**2).sum()) < 10 * float(layer.weight.detach().norm())


def test_structure() -> None:
    pieces = cp.structure(convolution(4, 3, 3, 5, stride=(2, 3), padding=(1, 2), dilation=(1, 2)), [6])
    assert list(dict(pieces.named_children())) == ["reduce", "vertical", "horizontal", "expand"]
    assert [piece.kernel_size for piece in pieces] == [(1, 1), (3, 1), (1, 5), (1, 1)]
    assert [piece.stride for piece in pieces] == [(1, 1), (2, 1), (1, 3), (1, 1)]
    assert [piece.padding for piece in pieces] == [(0, 0), (1, 0), (0, 2), (0, 0)]
    assert [piece.groups for piece in pieces] == [1, 6, 6, 1]
    assert [piece.bias is not None for piece in pieces] == [False, False, False, True]


def test_not_for_1x1_kernels() -> None:
    with pytest.raises(UserError, match="CP is for kernels larger than 1×1"):
        cp.decompose(convolution(4, 3, 1, 1), [1])
