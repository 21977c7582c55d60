"""Finds, while a network runs, the map that its global pooling takes: what a class activation map is made of."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LINEAR = ("linear", "conv1d", "conv2d")
ROUNDING = ("round", "round_", "quantize_per_tensor", "fake_quantize_per_tensor_affine")


@dataclass
class LinearCall:
    """What a linear layer, or a convolution, behind the pooling took, computed with, and gave."""

    value: Tensor
    weight: Tensor
    result: Tensor


class PoolingTap(TorchFunctionMode):
    """Watches the operators of a forward pass, so it works on modules and on flat graphs of operators alike.

    The global pooling is the last operator that takes a map N×C×h×w with h·w > 1 and returns none: a mean, a
    flattening, a convolution that shrinks the map to 1×1. Pooling to a grid of fixed size in front of linear layers
    counts, too. Nobody can say in advance which is the last (squeeze-and-excitation pools, too). So the autograd graph
    starts anew at each of them, and is dropped as soon as a map comes out of it again: before the last one no graph is
    kept, and nothing is computed twice but the pooling itself.

    Use it around a forward pass under `torch.no_grad`.

    Args:
        batch: number of images in the forward pass.

    Attributes:
        map: N×C×h×w, the leaf at which the graph starts; None if there was no such map.
        convolved: whether a convolution gave a map; if not, what is pooled is the image.
        linear: calls of linear layers after it.
        rounded: whether values were rounded after it.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.map: Tensor | None = None
        self.convolved = False
        self.linear: list[LinearCall] = []
        self.rounded = False
        self._batch = batch
        # weak: neither may live longer than the network needs it
        self._source: Callable[[], Tensor | None] = _nothing  # what `map` shares its memory with
        self._grid: Callable[[], Tensor | None] = _nothing  # what came out of a pooling to a grid

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the function: on the leaf, if it pools."""
        kwargs = dict(kwargs or {})
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        result = function(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        name = getattr(function, "__name__", "").partition(".")[0].strip("_")
        value = args[0] if args and isinstance(args[0], Tensor) else None
        self.convolved = self.convolved or ("conv" in name and self._is_map(result))
        if value is not None and self._pools(name, value, result):
            result = self._start(function, value, args[1:], kwargs)
            value = self.map
        elif value is not None and self._stays_grid(name, value, result):
            self._grid = weakref.ref(result)
        elif result.requires_grad and self._is_map(result):
            return self._stop(result)
        if value is not None and self.map is not None and not self._is_map(result):
            self._record(name, value, args[1:], kwargs, result)
        return result

    def _is_map(self, value: Tensor) -> bool:
        return (
            value.ndim == 4
            and len(value) == self._batch
            and value.numel() > self._batch * max(value.shape[1:])  # a vector may stand in any of the three dimensions
            and value.is_floating_point()
            and not isinstance(value, nn.Parameter)
        )

    def _pools(self, name: str, value: Tensor, result: Tensor) -> bool:
        if not self._is_map(value) or value is self._grid() or not result.is_floating_point():
            return False
        if result.ndim < 2 or len(result) != self._batch:
            return False
        return not self._is_map(result) or name.startswith("adaptive")

    def _stays_grid(self, name: str, value: Tensor, result: Tensor) -> bool:
        if name.startswith("adaptive"):  # of 1×1, copied to all places of the grid
            return self._is_map(result)
        return value is self._grid() and result.shape == value.shape and name not in LINEAR  # dropout, rounding

    def _start(self, function: Any, value: Tensor, rest: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        if self.map is None or value is not self._source():  # one map may be pooled in several ways
            self.map = value.detach().requires_grad_()
            self._source = weakref.ref(value)
            self.linear, self.rounded = [], False
        torch.set_grad_enabled(True)
        result = function(self.map, *rest, **kwargs)
        if result._is_view():  # of a leaf, which the next operator could not change in place
            result = result.clone()
        if self._is_map(result):
            self._grid = weakref.ref(result)
        return result

    def _stop(self, result: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        self.map, self._source = None, _nothing
        self.linear, self.rounded = [], False
        return result.detach() if result._is_view() else result.detach_()

    def _record(self, name: str, value: Tensor, rest: Sequence[Any], kwargs: dict[str, Any], result: Tensor) -> None:
        self.rounded = self.rounded or name in ROUNDING
        if name in LINEAR:
            weight = rest[0] if rest else kwargs["weight"]
            # vectors, and copies of them: what follows may work in place
            self.linear.append(LinearCall(value.detach().clone(), weight.detach(), result.detach().clone()))


def _nothing() -> None:
    return None
