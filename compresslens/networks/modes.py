"""Running a network without leaving a trace in it: to evaluate it, or for gradients of its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def input_gradients(network: nn.Module) -> Iterator[nn.Module]:
    """Within the block the network is in eval mode, its parameters are frozen, and gradients of inputs are available.

    Frozen parameters spare their part of the backward pass and cannot accumulate gradients. Autocast and TF32 are off:
    with bfloat16 the logits shift by more than many a margin. It works within `torch.no_grad` and
    `torch.inference_mode`. Every module's own train flag and every parameter's `requires_grad` are put back, on
    exceptions too.
    """
    requires_grad = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    devices = {parameter.device.type for parameter, _ in requires_grad} | {"cpu"}
    with ExitStack() as stack:
        for context in (_evaluating(network), torch.inference_mode(False), torch.enable_grad(), full_float32()):
            stack.enter_context(context)
        for device in sorted(devices):
            stack.enter_context(torch.autocast(device, enabled=False))
        try:
            for parameter, _ in requires_grad:
                parameter.requires_grad_(False)
            yield network
        finally:
            for parameter, was in requires_grad:
                parameter.requires_grad_(was)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Within the block the network evaluates, without autograd; afterwards its modes and the random state are back.

    TF32 is off. Inference mode is left, too: libraries that look at every operator do not get along with it.
    """
    device = device_of(network)
    random = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with _evaluating(network), torch.inference_mode(False), torch.no_grad(), full_float32(), random:
        yield


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode, after which every module's own flag is back. One by one: graphs of `torch.export` refuse `eval()`."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the block products of float32 numbers are of full precision; afterwards the settings are back.

    By default cuDNN convolves in TF32, of 10 bits, where the GPU has it; `torch.set_float32_matmul_precision` does
    likewise to matrix products, and on some CPUs takes bfloat16 for them.
    """
    backends: Any = torch.backends
    settings = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    settings += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    before, older = [setting.fp32_precision for setting in settings], _older_settings()
    try:
        _set_older(older and ("highest", False))
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        _set_older(older)
        for setting, was in zip(settings, before, strict=True):
            setting.fp32_precision = was


def _older_settings() -> tuple[str, bool] | None:
    """The settings that say the same in the older way, in which compilers ask; None where they contradict the newer."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_older(values: tuple[str, bool] | None) -> None:
    if values is not None:
        torch.set_float32_matmul_precision(values[0])
        torch.backends.cudnn.allow_tf32 = values[1]


def device_of(network: nn.Module) -> torch.device:
    """Where its parameters (or, if it has none, its buffers) are; the CPU if there are neither."""
    tensor = next(network.parameters(), next(network.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type of its floating-point parameters; float32 if it has none."""
    found = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
    return torch.float32 if found is None else found
