"""With nothing left out, a factorized layer computes what the layer did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslens.low_rank.pieces import values
from compresslens.low_rank.selection import decomposition
from tests.low_rank.layers import convolution, full_ranks, image, options

METHODS = ["tucker", "spatial_svd", "cp"]
channels = st.integers(1, 5)


@pytest.mark.parametrize("method", METHODS)
@given(st.tuples(channels, channels, st.integers(1, 4), st.integers(1, 4)), options())
@settings(deadline=None, max_examples=40)
def test_any_convolution(method: str, shape: tuple[int, ...], chosen: dict[str, Any]) -> None:
    name = "svd" if shape[2:] == (1, 1) else method
    layer, images = convolution(*shape, **chosen), image(2, shape[1], 8, 9)
    pieces = decomposition(name).decompose(layer, full_ranks(layer, name))
    torch.testing.assert_close(pieces(images), layer(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stride", [1, 2])
def test_in_single_precision(method: str, stride: int) -> None:
    layer = convolution(12, 8, 3, 3, stride=stride, padding=1, dtype=torch.float32)
    images = image(2, 8, 9, 9, dtype=torch.float32)
    pieces = decomposition(method).decompose(layer, full_ranks(layer, method))
    assert {parameter.dtype for parameter in pieces.parameters()} == {torch.float32}
    torch.testing.assert_close(pieces(images), layer(images), rtol=1e-5, atol=1e-5)


@given(st.integers(1, 6), st.integers(1, 6), st.booleans())
@settings(deadline=None, max_examples=20)
def test_linear_layers(inputs: int, outputs: int, bias: bool) -> None:
    layer, vectors = nn.Linear(inputs, outputs, bias).double(), image(2, 3, inputs)
    pieces = decomposition("svd").decompose(layer, full_ranks(layer, "svd"))
    torch.testing.assert_close(pieces(vectors), layer(vectors), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.tuples(*[st.integers(1, 3)] * 2), st.integers(7, 12))
@settings(deadline=None, max_examples=20)
def test_padding_by_the_size_of_the_input(
    method: str, kernel: tuple[int, int], stride: tuple[int, int], side: int
) -> None:
    """timm's convolutions with TensorFlow's padding, which is uneven and depends on the input."""
    from timm.layers import Conv2dSame

    plain = convolution(4, 3, *kernel, stride=stride, dilation=(1, 2))
    layer = Conv2dSame(3, 4, kernel, stride=stride, dilation=(1, 2)).double()
    layer.load_state_dict(plain.state_dict())
    name = "svd" if kernel == (1, 1) else method
    pieces = decomposition(name).decompose(layer, full_ranks(layer, name))
    images = image(2, 3, side, side + 1)
    torch.testing.assert_close(pieces(images), layer(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_kernel_of_zeros(method: str) -> None:
    layer = convolution(4, 3, 3, 3)
    nn.init.zeros_(layer.weight)
    pieces = decomposition(method).decompose(layer, [2, 2] if method == "tucker" else [2])
    images = image(1, 3, 5, 5)
    assert torch.equal(pieces(images), layer(images))


@pytest.mark.parametrize(("method", "ranks"), [("tucker", [2, 4]), ("spatial_svd", [6]), ("cp", [18]), ("svd", [2])])
def test_kernels_that_lack_rank(method: str, ranks: list[int]) -> None:
    """Filters that repeat each other cost nothing, and do no harm where they are not left out."""
    layer = convolution(6, 4, *(1, 1) if method == "svd" else (3, 3))
    with torch.no_grad():
        layer.weight[2:] = layer.weight[:1]
    images = image(1, 4, 5, 5)
    for enough in (ranks, full_ranks(convolution(*layer.weight.shape), method)):
        pieces = decomposition(method).decompose(layer, enough)
        torch.testing.assert_close(pieces(images), layer(images), rtol=1e-9, atol=1e-9)


# What the new layers inherit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "svd"])
def test_mode_type_and_whether_it_is_trained(method: str) -> None:
    layer = convolution(4, 3, *(1, 1) if method == "svd" else (3, 3), dtype=torch.bfloat16).eval()
    layer.weight.requires_grad_(False)
    ranks = full_ranks(layer, method)
    for pieces in (decomposition(method).decompose(layer, ranks), decomposition(method).structure(layer, ranks)):
        assert not any(module.training for module in pieces.modules())
        assert {parameter.dtype for parameter in pieces.parameters()} == {torch.bfloat16}
        trained = [name for name, parameter in pieces.named_parameters() if parameter.requires_grad]
        assert trained == ["expand.bias" if method != "spatial_svd" else "horizontal.bias"]


@pytest.mark.parametrize("method", [*METHODS, "svd"])
def test_no_random_numbers_and_no_default_type(method: str) -> None:
    layer = convolution(4, 3, *(1, 1) if method == "svd" else (3, 3), dtype=torch.float32)
    first = decomposition(method).decompose(layer, full_ranks(layer, method)).state_dict()
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.bfloat16)
    try:
        second = decomposition(method).decompose(layer, full_ranks(layer, method)).state_dict()
        empty = decomposition(method).structure(layer, full_ranks(layer, method)).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, torch.zeros_like(first[name])) for name, value in empty.items())


def test_values_are_in_double_precision() -> None:
    layer = convolution(4, 3, 3, 3, dtype=torch.float32)
    assert values(layer).dtype == torch.float64
    assert not values(layer).requires_grad
