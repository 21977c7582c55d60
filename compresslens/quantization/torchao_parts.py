"""What torchao's own observer and quantizer lack. Importing this imports torchao."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e import MovingAverageMinMaxObserver
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

_ANNOTATION = "quantization_annotation"


class PassMinMaxObserver(MovingAverageMinMaxObserver):
    """Averages, over forward passes, the least and the greatest value of all tensors that share this observer.

    Pooling and reshaping share the range of their input. torchao's own observer would average over those tensors, too,
    and so cut off the unpooled activations, whose values reach further than those of the pooled ones.

    The network's forward pass must set `new_pass` before it begins.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.new_pass = True
        self._before: tuple[Tensor, Tensor] | None = None
        self._reached: tuple[Tensor, Tensor] | None = None

    def forward(self, x_orig: Tensor) -> Tensor:
        """Returns its argument."""
        if x_orig.numel() == 0:
            return x_orig
        low, high = torch.aminmax(x_orig.detach().to(self.min_val.dtype))
        if self.new_pass or self._before is None or self._reached is None:
            self._before = (self.min_val.clone(), self.max_val.clone())
        else:
            low, high = torch.minimum(low, self._reached[0]), torch.maximum(high, self._reached[1])
        self.new_pass, self._reached = False, (low, high)
        for value, before, now in zip((self.min_val, self.max_val), self._before, (low, high), strict=True):
            moved = before + self.averaging_constant * (now - before)
            value.copy_(torch.where(torch.isfinite(before), moved, now))
        return x_orig

    def forget(self) -> None:
        """Starts anew: the range is unknown."""
        self.reset_min_max_vals()
        self.new_pass, self._before, self._reached = True, None, None


class PartialQuantizer(X86InductorQuantizer):
    """Leaves the convolutions and linear layers of some modules in float.

    torchao's own way (`set_module_name_qconfig(name, None)`) breaks its fusion with batch normalization.

    Args:
        float_layers: dotted names of layers, or of modules that contain them.
    """

    def __init__(self, float_layers: Collection[str]) -> None:
        super().__init__()
        self.float_layers = set(float_layers)

    def annotate(self, model: Any) -> Any:
        """Says which tensors are to be quantized, in the nodes' metadata."""
        model = super().annotate(model)
        for node in model.graph.nodes:
            modules = {name for name, _ in node.meta.get("nn_module_stack", {}).values()}
            if modules & self.float_layers and str(node.target).startswith(("aten.conv", "aten.linear")):
                node.meta.pop(_ANNOTATION, None)
        return model
