"""State dicts in which quantized weights take as many bits as their codes have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from compresslens.networks.taps import unwrap
from compresslens.quantization.lsq_layers import QuantizedLayer
from compresslens.quantization.lsq_quantizer import code_range, step_sizes

_CODES, _LAYOUT, _STEP = ".weight_codes", ".weight_layout", ".weight_quantizer.step"


def packed_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network with learned steps, its quantized weights as packed integers.

    Instead of `<layer>.weight` there are `<layer>.weight_codes` (uint8, the bits of all codes in a row, lowest first)
    and `<layer>.weight_layout` (int64: bits, shape). Everything else, the steps included, is as it was. All tensors are
    on the CPU and contiguous.
    """
    root = unwrap(network)
    state = {name: value.detach().cpu().contiguous() for name, value in root.state_dict().items()}
    for name, layer in root.named_modules(remove_duplicate=False):
        if not isinstance(layer, QuantizedLayer) or layer.weight_quantizer is None:
            continue
        quantizer = layer.weight_quantizer
        codes = quantizer.codes(layer.weight).cpu().contiguous()
        state[name + _CODES] = pack(codes - quantizer.low, quantizer.bits)
        state[name + _LAYOUT] = torch.tensor([quantizer.bits, *codes.shape])
        del state[f"{name}.weight"]
    return state


def unpack_state(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for `load_state_dict` of a network of the same structure.

    The weights are what the quantizers had made of them, so the network computes the same as the one that was packed.

    Args:
        packed: what `packed_state` returned.
    """
    state = {name: value for name, value in packed.items() if not name.endswith((_CODES, _LAYOUT))}
    for key, codes in packed.items():
        if not key.endswith(_CODES):
            continue
        name = key.removesuffix(_CODES)
        bits, *shape = packed[name + _LAYOUT].tolist()
        step = packed[name + _STEP]
        dtype = torch.promote_types(step.dtype, torch.float32)
        size = step_sizes(step.to(dtype)).view(-1, *[1] * (len(shape) - 1))
        values = unpack(codes, bits, int(np.prod(shape))).view(shape) + code_range(bits, True)[0]
        state[f"{name}.weight"] = (values.to(dtype) * size).to(step.dtype)
    return state


def pack(values: Tensor, bits: int) -> Tensor:
    """Writes the lowest bits of integers one after the other, lowest bit first; the last byte is filled with zeros.

    Args:
        values: integers in [0, 2^bits), any shape.
        bits: 1 to 8.

    Returns:
        uint8, ceil(number of values · bits / 8).
    """
    columns = np.unpackbits(values.numpy().astype(np.uint8).reshape(-1, 1), 1, bits, "little")
    return torch.from_numpy(np.packbits(columns, bitorder="little"))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: `count` integers (int16)."""
    columns = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy(np.packbits(columns, 1, "little").reshape(count).astype(np.int16))
