"""Where learned steps start: from the weights, and from what the layers of the float network see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.networks.taps import unwrap
from compresslens.quantization.lsq_quantizer import SMALLEST_STEP, code_range

_SAMPLES = 2**13
_CANDIDATES = 64
_NARROWEST = 2.0**-6


@dataclass
class Inputs:
    """What one layer saw during calibration.

    Attributes:
        minimum: the smallest value of all.
        samples: at most 2^13 values of each batch, at random places, float32 on the CPU.
    """

    minimum: float = float("inf")
    samples: list[Tensor] = field(default_factory=list)

    @property
    def signed(self) -> bool:
        """Whether there were negative values."""
        return self.minimum < 0


def observe_inputs(network: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Tensor]) -> dict[str, Inputs]:
    """Runs the network in eval mode and looks at the inputs of layers.

    The network is left as it was, also after an error: train flags, running statistics, gradients, hooks; and so is
    torch's random state.

    Args:
        network: takes images N×3×H×W in [0, 1].
        layers: the layers by their names.
        batches: of such images, on any device.

    Returns:
        By name, in the order in which the layers first ran; layers that never ran are missing.

    Raises:
        UserError: there are no images, or a layer's input is not finite.
    """
    seen: dict[str, Inputs] = {}
    root = unwrap(network)
    parameter = next(root.parameters())
    modes: list[tuple[Any, bool]] = [(module, module.training) for module in root.modules()]
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    count = 0
    handles = [layer.register_forward_pre_hook(_observer(seen, name)) for name, layer in layers.items()]
    try:
        for module, _ in modes:  # one by one: a network's own train() may do more
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices), _uncompiled(root):
            for images in batches:
                root(images.to(parameter.device, parameter.dtype))
                count += len(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    if count == 0:
        raise UserError("there are no images to calibrate the learned steps on")
    return seen


def weight_steps(weight: Tensor, bits: int, per_channel: bool) -> Tensor:
    """Initial steps of weights: 2 · mean|w| / sqrt(Q_P) (Esser et al. 2020, section 2.1).

    A channel of zeros has no scale of its own and gets the step of the whole layer; a layer of zeros gets 1.

    Args:
        weight: C×...
        bits: 2 to 8.
        per_channel: whether each output channel has its own.

    Returns:
        C or 1 positive numbers.
    """
    root = code_range(bits, True)[1] ** 0.5
    magnitude = weight.detach().abs()
    whole = 2 * magnitude.mean() / root
    whole = torch.where(whole > SMALLEST_STEP, whole, 1.0)
    steps = 2 * magnitude.flatten(1).mean(1) / root if per_channel else whole[None]
    return torch.where(steps > SMALLEST_STEP, steps, whole)


def input_step(samples: Tensor, bits: int, signed: bool) -> float:
    """Initial step of a layer's inputs: the one of least mean squared error among 64.

    They span the widest range, in which nothing is clipped, down to 1/64 of it, in equal ratios.

    The paper's start (2 · mean|v| / sqrt(Q_P), as for weights) knows nothing of how the values are spread. On a small
    residual network trained on digits it loses more before training, the more the fewer the bits (2 bits: 46 % against
    67 % correct, 3 bits: 80 against 83, 8 bits: the same); after training the two are alike.

    Args:
        samples: inputs of the layer, any shape.
        bits: 2 to 8.
        signed: whether there are codes for negative values.

    Returns:
        A positive number; 1 if all samples are zero.
    """
    low, high = code_range(bits, signed)
    values = samples.flatten()
    widest = max(float(values.max()) / high, float(values.min()) / low if signed else 0.0)
    if widest <= SMALLEST_STEP:
        return 1.0
    steps = [widest * _NARROWEST ** (number / (_CANDIDATES - 1)) for number in range(_CANDIDATES)]
    errors = [
        float(((values / step).clamp_(low, high).round_().mul_(step) - values).square_().mean()) for step in steps
    ]
    return max(steps[errors.index(min(errors))], SMALLEST_STEP)


def _uncompiled(network: nn.Module) -> AbstractContextManager[Any]:
    """Compiled parts run uncompiled within, because compiled code ignores hooks."""
    compiled = any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in network.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _observer(seen: dict[str, Inputs], name: str) -> Any:
    # One generator per layer and of its own: what is picked depends on nothing else.
    generator = torch.Generator().manual_seed(0)

    def observe(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().flatten().float()
        minimum = float(values.min())
        if not torch.isfinite(values).all():
            raise UserError(f"the input of layer '{name}' is not finite on the calibration images")
        if len(values) > _SAMPLES:
            places = torch.randint(len(values), (_SAMPLES,), generator=generator)
            values = values[places.to(values.device)]
        found = seen.setdefault(name, Inputs())
        found.minimum = min(found.minimum, minimum)
        found.samples.append(values.cpu())

    return observe
