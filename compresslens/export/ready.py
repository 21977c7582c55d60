"""The network that is written to files: a copy that only evaluates."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from compresslens import runs
from compresslens.errors import UserError
from compresslens.networks.changes import changes_of
from compresslens.networks.taps import unwrap

BATCH = 4096
"""Largest batch that an artefact takes."""


def is_int8(network: nn.Module) -> bool:
    """Whether the network is one with fake quantizers, which is deployed in INT8."""
    return _was(network, "fake_quantize")


def is_rounded(network: nn.Module) -> bool:
    """Whether activations are rounded, so that a runtime's last digits can decide between two codes."""
    return is_int8(network) or has_learned_steps(network)


def has_learned_steps(network: nn.Module) -> bool:
    """Whether the network's weights are rounded to few bits, in simulation."""
    return _was(network, "learned_steps")


def ready(network: nn.Module) -> nn.Module:
    """A copy for export: in eval mode, on the CPU, in float32, frozen; in INT8 if the network has fake quantizers.

    Where weights are rounded to few bits in simulation, the copy's weights are the rounded ones, which computes the
    same; so few different values are easily compressed. The network itself is left as it was.
    """
    root = unwrap(network)
    if is_int8(network):
        from compresslens.quantization.int8 import deployable

        return deployable(root).to("cpu").to(memory_format=torch.contiguous_format)
    own = copy.deepcopy(root).to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
    if has_learned_steps(network):
        from compresslens.quantization.lsq_packing import packed_state, unpack_state

        own.load_state_dict(unpack_state(packed_state(own)))
    return own.eval().requires_grad_(False)


def example(image_size: int) -> torch.Tensor:
    """Black images 2×3×S×S: two, so that no exporter takes the batch for a constant."""
    return torch.zeros(2, 3, image_size, image_size)


def write(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        runs.write_atomically(path, lambda temporary: _write_bytes(temporary, content))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def cannot_export(network: nn.Module, what: str, error: Exception) -> UserError:
    """What to say if an exporter does not get along with a network."""
    name = getattr(network, "architecture", type(network).__name__)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"{name} cannot be exported as {what}: {reason}; leave this format out (formats of callbacks.Export)"
    )


def _was(network: nn.Module, kind: str) -> bool:
    return any(change["kind"] == kind for change in changes_of(network))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
