from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslens.errors import UserError
from compresslens.low_rank import tucker
from tests.low_rank.layers import convolution
from tests.references import low_rank as reference

sizes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(2, 3))


@given(sizes, st.data())
@settings(deadline=None, max_examples=30)
def test_the_error_against_the_references(shape: tuple[int, ...], data: st.DataObject) -> None:
    layer = convolution(*shape)
    ranks = [data.draw(st.integers(1, size)) for size in shape[:2]]
    fitted = tucker.fit_ranks(layer, ranks)
    kernel = reference.array(layer.weight)
    spectra = [reference.singular_values(reference.unfold(kernel, [mode])) for mode in (0, 1)]
    for mode in (0, 1):
        own = tucker.spectra(layer)[mode]
        np.testing.assert_allclose(own, spectra[mode][: len(own)], atol=1e-7)
    error = reference.squared_error(reference.tucker_weight(*reference.weights(tucker.decompose(layer, ranks))), kernel)
    bound = sum((values[rank:] ** 2).sum() for values, rank in zip(spectra, fitted, strict=True))
    start = reference.squared_error(reference.hosvd(kernel, *fitted), kernel)
    assert error <= start + 1e-12 <= bound + 1e-7
    slow = reference.squared_error(reference.hooi(kernel, *fitted, tucker.SWEEPS), kernel)
    assert error == pytest.approx(slow, abs=1e-10)


def test_the_iteration_improves_on_its_start() -> None:
    layer = convolution(12, 10, 3, 3)
    kernel = reference.array(layer.weight)
    weight = reference.tucker_weight(*reference.weights(tucker.decompose(layer, [4, 3])))
    start = reference.squared_error(reference.hosvd(kernel, 4, 3), kernel)
    assert reference.squared_error(weight, kernel) < 0.999 * start


def test_a_kernel_of_lower_rank_is_found() -> None:
    """The sum of two small kernels, seen through random channels."""
    layer = convolution(8, 7, 3, 3)
    generator = np.random.default_rng(0)
    kernel = np.einsum(
        "op,pqyx,qi->oiyx",
        generator.normal(size=(8, 2)),
        generator.normal(size=(2, 3, 3, 3)),
        generator.normal(size=(3, 7)),
    )
    layer.weight.data.copy_(layer.weight.new_tensor(kernel))
    weight = reference.tucker_weight(*reference.weights(tucker.decompose(layer, [2, 3])))
    np.testing.assert_allclose(weight, kernel, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "ranks", "expected"),
    [((64, 3, 3, 3), [64, 3], [27, 3]), ((3, 64, 3, 3), [3, 64], [3, 27]), ((8, 8, 1, 2), [5, 2], [4, 2])],
)
def test_no_more_outputs_than_inputs_can_make(shape: tuple[int, ...], ranks: list[int], expected: list[int]) -> None:
    layer = convolution(*shape)
    assert tucker.fit_ranks(layer, ranks) == expected
    assert tucker.fit_ranks(layer, expected) == expected
    assert [tuple(piece.weight.shape[:2]) for piece in tucker.decompose(layer, ranks)] == [  # type: ignore[union-attr,index]
        (expected[1], shape[1]),
        (expected[0], expected[1]),
        (shape[0], expected[0]),
    ]


def test_structure() -> None:
    pieces = tucker.structure(convolution(4, 3, 3, 5, stride=(2, 3), padding=(1, 2), dilation=(1, 2)), [2, 3])
    assert list(dict(pieces.named_children())) == ["reduce", "core", "expand"]
    assert [piece.kernel_size for piece in pieces] == [(1, 1), (3, 5), (1, 1)]
    assert [piece.stride for piece in pieces] == [(1, 1), (2, 3), (1, 1)]
    assert [piece.padding for piece in pieces] == [(0, 0), (1, 2), (0, 0)]
    assert [piece.bias is not None for piece in pieces] == [False, False, True]


def test_not_for_1x1_kernels() -> None:
    with pytest.raises(UserError, match="Tucker-2 is for kernels larger than 1×1"):
        tucker.decompose(convolution(4, 3, 1, 1), [1, 1])
