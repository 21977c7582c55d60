"""What is changed in INT8 graphs and files for the runtimes of ONNX, against plain arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compresslens.export.int8_onnx import for_runtimes
from compresslens.export.onnx_bias import round_biases
from compresslens.export.onnx_padding import move_padding
from compresslens.export.torch_export import capture, register_quantized_operators

STEP, ZERO = 0.05, 100


class Int8Block(nn.Module):
    """Rounds images, convolves them twice with rounded weights, and adds the first result, rounded, to the second."""

    def __init__(self) -> None:
        super().__init__()
        register_quantized_operators()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator) / 5)
        self.second = nn.Parameter(torch.randn(4, 4, 3, 3, generator=generator) / 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = fake(images, STEP, ZERO)
        residual = fake(torch.conv2d(images, self.first, padding=1).relu(), STEP, 0)
        return torch.conv2d(residual, self.second, padding=1) + residual


def fake(values: torch.Tensor, step: float, zero: int) -> torch.Tensor:
    operators = torch.ops.quantized_decomposed
    options = (step, zero, 0, 255, torch.uint8)
    return operators.dequantize_per_tensor(operators.quantize_per_tensor(values, *options), *options)


@pytest.fixture
def block() -> Any:
    """The block as a graph of operators."""
    return capture(Int8Block(), 6).module()


def images(count: int = 4) -> torch.Tensor:
    """In the range that the first rounding covers: -5 to 7.75."""
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 12.75 - 5


def calls(graph: Any, name: str) -> list[Any]:
    return [node for node in graph.graph.nodes if name in str(node.target)]


def test_what_is_added_to_a_residual_is_rounded(block: Any) -> None:
    first, second = (parameter.detach() for parameter in block.parameters())
    examples = images()[:1]

    def summand(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = (((values / STEP).round() + ZERO).clamp(0, 255) - ZERO) * STEP
        residual = (torch.conv2d(values, first, padding=1).relu() / STEP).round().clamp(0, 255) * STEP
        return torch.conv2d(residual, second, padding=1), residual

    seen, _ = summand(examples)
    low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
    step = (high - low) / 255
    zero = round(-low / step)

    changed = for_runtimes(block, examples)
    output, residual = summand(images())
    expected = (((output / step).round() + zero).clamp(0, 255) - zero) * step + residual
    with torch.no_grad():
        got = changed(images())
        assert float((got - expected).abs().max()) < 1.01 * step + STEP, "by one rounding at most"
        assert float((got - expected).abs().median()) < 1e-5
        assert float((changed(examples) - block(examples)).abs().max()) < 0.2, "and the block is almost the same"
    assert len(calls(changed, "quantize_per_tensor")) == len(calls(block, "quantize_per_tensor")) + 2


def test_what_was_rounded_already_stays_as_it_is(block: Any) -> None:
    before = [node.args[1:] for node in calls(block, "quantize_per_tensor.")]
    after = [node.args[1:] for node in calls(for_runtimes(block, images()), "quantize_per_tensor.")]
    assert after[: len(before)] == before, "what is new comes last"
    assert len(after) == len(before) + 2
    assert [node.args[1:] for node in calls(block, "quantize_per_tensor.")] == before, "a copy is changed"


def test_a_graph_without_such_places_computes_the_same() -> None:
    class Plain(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return torch.conv2d(fake(values, STEP, 0), torch.ones(1, 3, 1, 1))

    register_quantized_operators()
    graph: Any = capture(Plain(), 6).module()
    assert torch.equal(for_runtimes(graph, images())(images()), graph(images()))


# Files ----------------------------------------------------------------------------------------------------------------


def constant(name: str, value: Any) -> Any:
    return numpy_helper.from_array(np.asarray(value), name)


def rounding(name: str, source: str) -> list[Any]:
    """Rounds to uint8 and back."""
    return [
        helper.make_node("QuantizeLinear", [source, "step", "zero"], [f"{name}_codes"]),
        helper.make_node("DequantizeLinear", [f"{name}_codes", "step", "zero"], [name]),
    ]


def as_file(nodes: list[Any], constants: list[Any], shape: list[Any], output: list[Any]) -> Any:
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, output)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def after(change: Any, model: Any) -> Any:
    """The file after a change."""
    inner = onnx_ir.from_proto(model)
    change(inner)
    changed = onnx_ir.to_proto(inner)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def run(model: Any, values: Any) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, {"images": values})[0]


def padded(amounts: list[int], value: float = 0.0, own: tuple[int, ...] = (0, 0, 0, 0)) -> Any:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Pad", ["images", "amounts", "value"], ["padded"], mode="constant"),
        *rounding("rounded", "padded"),
        helper.make_node("Conv", ["rounded", "weight"], ["output"], strides=[2, 2], pads=list(own)),
    ]
    constants = [
        constant("amounts", np.array(amounts)),
        constant("value", np.float32(value)),
        constant("step", np.float32(STEP)),
        constant("zero", np.uint8(ZERO)),
        constant("weight", weight),
    ]
    return as_file(nodes, constants, ["n", 3, 8, 8], ["n", 4, "h", "w"])


@pytest.mark.parametrize("own", [(0, 0, 0, 0), (1, 0, 2, 1)])
@pytest.mark.parametrize("amounts", [[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 2, 0, 0, 2, 0]])
def test_padding_with_zeros_is_moved_and_nothing_changes(amounts: list[int], own: tuple[int, ...]) -> None:
    model = padded(amounts, own=own)
    changed = after(move_padding, model)
    assert [node.op_type for node in changed.graph.node] == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    values = np.random.default_rng(1).uniform(-5, 7, (2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(changed, values), run(model, values), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("amounts", "value"), [([0, 0, 0, 0, 0, 0, 1, 1], 1.0), ([0, 0, -1, 0, 0, 0, 0, 0], 0.0)])
def test_other_padding_stays(amounts: list[int], value: float) -> None:
    changed = after(move_padding, padded(amounts, value))
    assert "Pad" in [node.op_type for node in changed.graph.node]


def linear(bias: Any, **attributes: Any) -> Any:
    generator = np.random.default_rng(0)
    codes = generator.integers(-127, 128, (5, 6)).astype(np.int8)
    nodes = [
        *rounding("rounded", "images"),
        helper.make_node("DequantizeLinear", ["codes", "steps", "zeros"], ["weight"], axis=0),
        helper.make_node("Gemm", ["rounded", "weight", "bias"], ["output"], **{"transB": 1, **attributes}),
    ]
    constants = [
        constant("step", np.float32(STEP)),
        constant("zero", np.uint8(ZERO)),
        constant("codes", codes),
        constant("steps", generator.uniform(0.001, 0.01, 5).astype(np.float32)),
        constant("zeros", np.zeros(5, np.int8)),
        constant("bias", bias.astype(np.float32)),
    ]
    return as_file(nodes, constants, [3, 6], [3, 5])


def test_a_bias_is_rounded_by_the_step_of_the_products() -> None:
    bias = np.random.default_rng(2).normal(size=5)
    model = linear(bias)
    changed = after(round_biases, model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    assert "bias" not in constants
    assert constants["bias_int32"].dtype == np.int32
    step = STEP * {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}["steps"].astype(np.float64)
    np.testing.assert_allclose(constants["bias_step"], step, rtol=1e-6)
    np.testing.assert_allclose(constants["bias_int32"] * step, bias, rtol=0, atol=0.51 * step.max())
    values = np.random.default_rng(1).uniform(-5, 7, (3, 6)).astype(np.float32)
    np.testing.assert_allclose(run(changed, values), run(model, values), rtol=0, atol=0.51 * step.max() + 1e-5)


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"beta": 0.5}])
def test_a_layer_of_another_kind_keeps_its_bias(attributes: Any) -> None:
    model = linear(np.ones(5), **attributes)
    assert after(round_biases, model) == onnx_ir.to_proto(onnx_ir.from_proto(model))


def test_a_file_without_such_places_stays_as_it_is(tmp_path: Path) -> None:
    from compresslens.export import export_onnx, ready
    from tests.export.test_artefacts import Plain

    export_onnx(ready(Plain()), tmp_path / "model.onnx", 8)
    model = onnx.load(tmp_path / "model.onnx")
    for change in (move_padding, round_biases):
        assert after(change, model) == onnx_ir.to_proto(onnx_ir.from_proto(model))
