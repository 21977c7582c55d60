"""What the layers of a network have to do for one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compresslens.footprint import count_macs


@dataclass(frozen=True)
class Use:
    """Numbers of positions that a layer works on for one image, over all its runs.

    Attributes:
        inputs: positions of the input map, H·W; of a linear layer, like all three, the vectors it is given.
        between: rows of the output times columns of the input, H'·W: what a vertical convolution gives.
        outputs: positions of the output map, H'·W'.
    """

    inputs: int = 0
    between: int = 0
    outputs: int = 0


def measure_uses(network: nn.Module, image_size: int) -> tuple[dict[nn.Module, Use], int]:
    """Runs the network on an image and watches its two-dimensional convolutions and linear layers.

    Returns:
        The use of each layer that has run, in the order in which they ran first, and the network's multiply-accumulate
        operations as `count_macs` counts them.
    """
    uses: dict[nn.Module, Use] = {}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        before = uses.get(module, Use())
        if isinstance(module, nn.Linear):
            rows = output.numel() // module.out_features
            now = (rows, rows, rows)
        else:
            (height, width), (new_height, new_width) = inputs[0].shape[-2:], output.shape[-2:]
            now = (height * width, new_height * width, new_height * new_width)
        uses[module] = Use(before.inputs + now[0], before.between + now[1], before.outputs + now[2])

    handles = [m.register_forward_hook(watch) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        total = count_macs(network, image_size)
    finally:
        for handle in handles:
            handle.remove()
    return uses, total
