"""Rounds the biases of INT8 linear layers to int32, in which they are added."""

from __future__ import annotations

from typing import Any

import numpy as np


def round_biases(model: Any) -> None:
    """Changes an `onnx_ir` model in place: the bias of a Gemm of rounded inputs and weights becomes int32, too.

    Its step is the product of theirs, so the change is far below what rounding them costs. ONNX Runtime computes the
    layer in float otherwise; for convolutions it sees to that itself.
    """
    for gemm in [node for node in model.graph if node.op_type == "Gemm"]:
        steps = _steps(gemm)
        bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        if steps is not None and bias is not None and bias.const_value is not None:
            _round(model, gemm, bias, steps)


def _steps(gemm: Any) -> Any:
    """Steps of the products of input and weights, one per output; None if one of them is not rounded."""
    images, weights = (value.producer() for value in gemm.inputs[:2])
    if any(node is None or node.op_type != "DequantizeLinear" for node in (images, weights)):
        return None
    factors = [gemm.attributes[name].as_float() for name in ("alpha", "beta") if name in gemm.attributes]
    transposed = [gemm.attributes[name].as_int() if name in gemm.attributes else 0 for name in ("transA", "transB")]
    scales = [node.inputs[1].const_value for node in (images, weights)]
    if any(factor != 1 for factor in factors) or transposed != [0, 1] or any(scale is None for scale in scales):
        return None
    outputs = gemm.inputs[1].shape[0]
    steps = scales[0].numpy().astype(np.float64) * scales[1].numpy()
    return np.broadcast_to(steps, (outputs,)) if steps.size in (1, outputs) else None


def _round(model: Any, gemm: Any, bias: Any, steps: Any) -> None:
    import onnx_ir

    limits = np.iinfo(np.int32)
    codes = np.clip(np.rint(bias.const_value.numpy() / steps), limits.min, limits.max).astype(np.int32)
    constants = []
    for suffix, array in (("int32", codes), ("step", steps.astype(np.float32)), ("zero", np.zeros_like(codes))):
        value = onnx_ir.val(f"{bias.name}_{suffix}", const_value=onnx_ir.tensor(array, name=f"{bias.name}_{suffix}"))
        model.graph.register_initializer(value)
        constants.append(value)
    output = onnx_ir.val(f"{bias.name}_rounded", onnx_ir.DataType.FLOAT, bias.shape)
    node = onnx_ir.node("DequantizeLinear", constants, {"axis": 0}, outputs=[output], name=f"node_{output.name}")
    model.graph.insert_before(gemm, node)
    gemm.replace_input_with(2, output)
    if not bias.uses():
        model.graph.initializers.pop(bias.name)
