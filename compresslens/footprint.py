"""What a network costs: parameters, multiply-accumulate operations, bytes, memory."""

from __future__ import annotations

import weakref
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from compresslens.export.safetensors_recipe import DEFLATE_LEVEL, serialized
from compresslens.networks.modes import device_of, dtype_of, evaluation_mode


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Number of parameters, frozen ones included, shared ones once, buffers not; and how many of them are not zero.

    Returns:
        (all, nonzero).
    """
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p.detach())) for p in parameters)


def zero_share(network: nn.Module) -> float:
    """Share of zeros among the weights of convolutions and linear layers (parameters of two dimensions or more)."""
    weights = [p.detach() for p in network.parameters() if p.ndim > 1]
    total = sum(weight.numel() for weight in weights)
    return (total - sum(int(torch.count_nonzero(weight)) for weight in weights)) / max(total, 1)


def count_macs(network: nn.Module, image_size: int) -> int:
    """Multiply-accumulate operations of all convolutions, linear layers and matrix products for one image.

    Counted is what runs (`torch.utils.flop_counter`, which counts two operations for each), so graphs without modules
    count like networks. A convolution needs output elements x kernel elements x in_channels / groups, a transposed one
    input elements x kernel elements x out_channels / groups, a linear layer output elements x in_features. Biases,
    normalization, activations, pooling and rounding are not counted. A layer counts as often as it runs. Zeros in the
    weights count like other values.

    The network is left as it was: train flags, running statistics, gradients, random state.

    Args:
        network: takes images 1x3xSxS.
        image_size: S.
    """
    with evaluation_mode(network), FlopCounterMode(display=False) as counter:
        network(_image(network, image_size))
    return counter.get_total_flops() // 2


def peak_memory(network: nn.Module, image_size: int, batch: int = 1) -> int:
    """Bytes of parameters, buffers and, at the worst moment of a forward pass, all intermediate results.

    Counted are PyTorch's tensors, not what an operator needs for itself; so the figure is the same on every machine.

    Args:
        network: takes images Nx3xSxS; left as it was.
        image_size: S.
        batch: N.
    """
    images = _image(network, image_size).repeat(batch, 1, 1, 1)
    with evaluation_mode(network), _LiveTensors() as live:
        live.add(images)
        network(images)
    held = {tensor.untyped_storage().data_ptr(): tensor for tensor in (*network.parameters(), *network.buffers())}
    return live.peak + sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def weights_bytes(network: nn.Module) -> int:
    """Bytes of the state dict as a safetensors file (each tensor in its own type), compressed with deflate level 6.

    That is parameters and persistent buffers with their names, shared tensors once. It does not count the code that
    is needed to run the network. Compression is what makes zeros and repeated values count.
    """
    return len(zlib.compress(serialized(network), DEFLATE_LEVEL))


class _LiveTensors(TorchDispatchMode):
    """Adds up the memory of the tensors that operators return, as long as they live.

    Attributes:
        peak: the greatest sum so far, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        outputs = func(*args, **(kwargs or {}))
        for value in tree_leaves(outputs):
            if isinstance(value, Tensor) and id(value.untyped_storage()) not in inputs:  # else a view, or in place
                self.add(value)
        return outputs

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor until its memory is freed."""
        storage = tensor.untyped_storage()
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._free, id(storage), storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _image(network: nn.Module, image_size: int) -> Tensor:
    return torch.zeros(1, 3, image_size, image_size, dtype=dtype_of(network), device=device_of(network))
