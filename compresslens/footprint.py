"""What a network costs: parameters, multiply-accumulate operations, bytes."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_COMPRESSION_LEVEL = 6


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Number of parameters, frozen ones included, shared ones once, buffers not; and how many of them are not zero.

    Returns:
        (all, nonzero).
    """
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p.detach())) for p in parameters)


def count_macs(network: nn.Module, image_size: int) -> int:
    """Multiply-accumulate operations of all convolutions and linear layers for one image.

    A convolution needs output elements x kernel elements x in_channels / groups, a transposed one input elements x
    kernel elements x out_channels / groups, a linear layer output elements x in_features. Biases, normalization,
    activations, pooling and products outside of such layers (attention) are not counted. A layer counts as often as it
    runs. Zeros in the weights count like other values.

    The network is left as it was: train flags, hooks, running statistics, gradients, random state.

    Args:
        network: takes images 1x3xSxS; modules that are neither `nn.Conv*d` nor `nn.Linear` count as nothing.
        image_size: S.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, _ConvNd):
            elements, weight = (inputs[0] if module.transposed else output), module.weight
            total += elements.numel() * weight[0].numel()

    parameter = next(network.parameters(), torch.zeros(0))
    image = torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
    modes: list[tuple[Any, bool]] = [(module, module.training) for module in network.modules()]
    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, (nn.Linear, _ConvNd))]
    devices = [image.device] if image.device.type == "cuda" else []
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices):
            network(image)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return total


def weights_bytes(network: nn.Module) -> int:
    """Bytes of the state dict as a safetensors file (each tensor in its own type), compressed with deflate level 6.

    That is parameters and persistent buffers with their names, shared tensors once. It does not count the code that
    is needed to run the network. Compression is what makes zeros and repeated values count.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in seen:
            continue
        seen.add(place)
        # Overlapping views are refused and the memory format is no property of the weights, hence the copy.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return len(zlib.compress(save(tensors), _COMPRESSION_LEVEL))
