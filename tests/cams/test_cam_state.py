"""A network is left as it was found, whatever its caller's mode, and nothing grows."""

from __future__ import annotations

import gc
import random
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from compresslens.cams import class_activation_maps, maps_and_logits
from compresslens.errors import UserError
from compresslens.quantization import calibrate, fake_quantize
from tests.cams.networks import images
from tests.lightning_modules.tiny import TinyNetwork
from tests.quantization.networks import images as noise
from tests.quantization.networks import residual

METHODS = ("cam", "grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam", "eigen_cam", "score_cam")


def state(network: nn.Module) -> list[Any]:
    return [
        [module.training for module in network.modules()],
        [parameter.requires_grad for parameter in network.parameters()],
        [parameter.grad for parameter in network.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules()],
        [len(parameter._backward_hooks or ()) for parameter in network.parameters()],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.overrides._len_torch_function_stack(),  # type: ignore[attr-defined]
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]
        random.getstate(),
    ]


def mixed() -> TinyNetwork:
    network = TinyNetwork()
    network.train()
    network.layer1.eval()
    network.classifier.weight.requires_grad_(False)
    network(images()).sum().backward()
    return network


@pytest.mark.parametrize("layer", [None, "layer1"])
@pytest.mark.parametrize("method", METHODS)
def test_everything_is_left_as_found(method: Any, layer: str | None) -> None:
    network, x = mixed(), images()
    buffers = [buffer.clone() for buffer in network.buffers()]
    pixels = x.clone()
    before = state(network)
    gradients = [None if value is None else value.clone() for value in before[2]]
    if method == "cam" and layer:
        with pytest.raises(UserError):
            class_activation_maps(network, x, method=method, layer=layer)
    else:
        class_activation_maps(network, x, method=method, layer=layer)
    assert str(state(network)) == str(before)
    for now, was in zip(state(network)[2], gradients, strict=True):
        assert (now is None and was is None) or torch.equal(now, was)
    assert all(torch.equal(a, b) for a, b in zip(buffers, network.buffers(), strict=True))
    assert torch.equal(x, pixels)


@pytest.mark.parametrize("layer", [None, "layer1", "classifier", "nowhere"])
@pytest.mark.parametrize("where", ["layer1", "classifier"])
def test_after_exceptions_too(layer: str | None, where: str) -> None:
    network = mixed()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    handle = network.get_submodule(where).register_forward_hook(fail)
    before = state(network)
    with pytest.raises((ZeroDivisionError, UserError)):
        class_activation_maps(network, images(), layer=layer)
    assert str(state(network)) == str(before)
    handle.remove()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("layer", [None, "layer1"])
def test_any_mode_of_the_caller(mode: Any, layer: str | None, frozen: bool) -> None:
    network = TinyNetwork()
    expected = class_activation_maps(network, images(), layer=layer)
    assert expected.any()
    network.requires_grad_(not frozen)
    with mode():
        x = images()  # an inference tensor, in inference mode
        maps, logits = maps_and_logits(network, x, layer=layer)
        assert torch.equal(maps, expected)
        assert torch.equal(logits, network.eval()(x))
    assert not maps.requires_grad
    assert not logits.requires_grad
    assert not maps.is_inference()


def test_images_that_require_a_gradient() -> None:
    x = images().requires_grad_()
    maps = class_activation_maps(TinyNetwork(), x)
    assert not maps.requires_grad
    assert x.grad is None


def test_autocast_is_off() -> None:
    network = TinyNetwork()
    expected = maps_and_logits(network, images())
    with torch.autocast("cpu", torch.bfloat16):
        found = maps_and_logits(network, images())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_another_precision(dtype: torch.dtype) -> None:
    network = TinyNetwork().to(dtype)
    for method in METHODS:
        maps, logits = maps_and_logits(network, images().to(dtype), method=method)  # type: ignore[arg-type]
        assert maps.dtype == logits.dtype == torch.float32
        assert (maps.amax((1, 2)) > 0.9).any()


def fake_quantized() -> nn.Module:
    network = residual()
    fake_quantize(network)
    calibrate(network, [noise()])
    return network


def tensors() -> int:
    return sum(isinstance(one, Tensor) for one in gc.get_objects())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("build", "layer", "method"),
    [
        (TinyNetwork, None, "grad_cam"),
        (TinyNetwork, "layer1", "layer_cam"),
        pytest.param(TinyNetwork, None, "cam", marks=pytest.mark.slow),
        pytest.param(fake_quantized, "relu", "hires_cam", marks=pytest.mark.slow),
        pytest.param(fake_quantized, None, "grad_cam", marks=pytest.mark.slow),
    ],
)
def test_nothing_grows_in_200_calls(build: Any, layer: str | None, method: Any) -> None:
    network = build()
    x = noise(2) if build is fake_quantized else images(2, 128)  # no layer's output has less than 64 kB
    for _ in range(20):
        class_activation_maps(network, x, method=method, layer=layer)
    gc.collect()
    gc.disable()  # not even until garbage is collected
    try:
        objects, hooks, memory = tensors(), state(network)[3], psutil.Process().memory_info().rss
        for _ in range(200):
            class_activation_maps(network, x, method=method, layer=layer)
        grown = psutil.Process().memory_info().rss - memory
        assert tensors() == objects
        assert state(network)[3] == hooks
    finally:
        gc.enable()
    assert grown < 6e6, "one forgotten output per call would be 13 MB"
