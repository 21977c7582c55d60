from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslens.errors import UserError
from compresslens.low_rank import spatial_svd
from tests.low_rank.layers import convolution
from tests.references import low_rank as reference

sizes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(2, 4))


@given(sizes, st.data())
@settings(deadline=None, max_examples=30)
def test_the_error_is_what_is_left_out(shape: tuple[int, ...], data: st.DataObject) -> None:
    layer = convolution(*shape)
    rank = data.draw(st.integers(1, min(shape[1] * shape[2], shape[0] * shape[3])))
    kernel = reference.array(layer.weight)
    singular = reference.singular_values(reference.unfold(kernel, [1, 2]))
    np.testing.assert_allclose(spatial_svd.spectra(layer)[0], singular, atol=1e-7)
    weight = reference.spatial_weight(*reference.weights(spatial_svd.decompose(layer, [rank])))
    assert reference.squared_error(weight, kernel) == pytest.approx((singular[rank:] ** 2).sum(), abs=1e-12)


def test_structure() -> None:
    layer = convolution(4, 3, 3, 5, stride=(2, 3), padding=(1, 2), dilation=(1, 2), padding_mode="reflect")
    vertical, horizontal = spatial_svd.structure(layer, [6])
    assert [tuple(piece.weight.shape) for piece in (vertical, horizontal)] == [(6, 3, 3, 1), (4, 6, 1, 5)]  # type: ignore[union-attr]
    assert (vertical.stride, vertical.padding, vertical.dilation) == ((2, 1), (1, 0), (1, 1))
    assert (horizontal.stride, horizontal.padding, horizontal.dilation) == ((1, 3), (0, 2), (1, 2))
    assert vertical.padding_mode == horizontal.padding_mode == "reflect"
    assert vertical.bias is None
    assert horizontal.bias is not None


def test_not_for_1x1_kernels() -> None:
    with pytest.raises(UserError, match="spatial SVD is for kernels larger than 1×1"):
        spatial_svd.decompose(convolution(4, 3, 1, 1), [1])
