from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslens.errors import UserError
from compresslens.low_rank import svd
from tests.low_rank.layers import convolution
from tests.references import low_rank as reference


@given(st.integers(1, 7), st.integers(1, 7), st.data())
@settings(deadline=None, max_examples=30)
def test_the_error_is_what_is_left_out(outputs: int, inputs: int, data: st.DataObject) -> None:
    layer = convolution(outputs, inputs, 1, 1)
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    matrix = reference.unfold(reference.array(layer.weight), [0])
    singular = reference.singular_values(matrix)
    np.testing.assert_allclose(svd.spectra(layer)[0], singular, atol=1e-7)
    weight = reference.svd_weight(*reference.weights(svd.decompose(layer, [rank])))
    assert reference.squared_error(weight, matrix) == pytest.approx((singular[rank:] ** 2).sum(), abs=1e-12)


def test_both_pieces_get_the_same_share() -> None:
    layer = nn.Linear(8, 5).double()
    reduce, expand = reference.weights(svd.decompose(layer, [3]))
    singular = reference.singular_values(reference.array(layer.weight))[:3]
    np.testing.assert_allclose(reduce @ reduce.T, np.diag(singular), atol=1e-9)
    np.testing.assert_allclose(expand.T @ expand, np.diag(singular), atol=1e-9)


def test_only_for_small_kernels() -> None:
    with pytest.raises(UserError, match="plain SVD is for 1×1 kernels and linear layers, not for 3×1 kernels"):
        svd.decompose(convolution(4, 3, 3, 1), [1])


def test_structure() -> None:
    pieces = svd.structure(convolution(4, 3, 1, 1, stride=2, padding=1), [2])
    assert [tuple(piece.weight.shape) for piece in pieces] == [(2, 3, 1, 1), (4, 2, 1, 1)]  # type: ignore[union-attr]
    assert [(piece.stride, piece.padding) for piece in pieces] == [((2, 2), (1, 1)), ((1, 1), (0, 0))]
    assert list(dict(pieces.named_children())) == ["reduce", "expand"]
    linear = svd.structure(nn.Linear(6, 5, bias=False), [2])
    assert {name: tuple(value.shape) for name, value in linear.state_dict().items()} == {
        "reduce.weight": (2, 6),
        "expand.weight": (5, 2),
    }
    assert all(torch.equal(value, torch.zeros_like(value)) for value in linear.state_dict().values())
