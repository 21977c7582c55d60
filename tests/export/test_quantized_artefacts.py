"""Artefacts of quantized networks: really small, and the same network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from callbacks.export import report
from compresslens.errors import UserError
from compresslens.export import FORMATS, artefacts, export_model, load_recipe, ready, runtimes
from compresslens.export.evaluation import logits_of
from compresslens.export.safetensors_recipe import activation_scales, set_activation_scales
from compresslens.footprint import count_macs, weights_bytes
from compresslens.networks import PixelNetwork
from compresslens.quantization import calibrate, fake_quantize, learn_steps
from tests.export.networks import SIZE, images, plain


@pytest.fixture(scope="module")
def twin() -> PixelNetwork:
    """With fake quantizers."""
    network = plain().eval()
    fake_quantize(network)
    calibrate(network.eval(), images(32).split(8))
    return network


@pytest.fixture(scope="module")
def written(twin: PixelNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    state = {name: value.clone() for name, value in twin.state_dict().items()}
    modes = [module.training for module in twin.modules()]
    export_model(twin, folder, SIZE, images(32), calibration=images(32))
    assert all(torch.equal(value, state[name]) for name, value in twin.state_dict().items()), "left as it was"
    assert [module.training for module in twin.modules()] == modes
    return folder


@pytest.fixture(scope="module")
def int8(twin: PixelNetwork) -> nn.Module:
    return ready(twin)


def test_all_formats_compute_the_int8_network(written: Path, int8: nn.Module, twin: PixelNetwork) -> None:
    for count in (1, 5):
        batch = images(count)
        expected = logits_of(int8, batch)
        assert torch.equal(logits_of(load_recipe(written), batch), expected)
        assert torch.equal(runtimes.load("eager", written / "model.pt2", None, SIZE)(batch), expected)
        rounding = 0.03 * float(expected.max() - expected.min())  # a runtime may round the other way
        for runtime in ("onnxruntime", "openvino"):
            got = torch.as_tensor(runtimes.load(runtime, written / "model.onnx", count, SIZE)(batch))
            assert float((got - expected).abs().max()) < rounding, runtime
        assert float((logits_of(twin, batch) - expected).abs().max()) < rounding


@pytest.mark.slow
def test_compiled_int8(written: Path, int8: nn.Module) -> None:
    got = runtimes.load("compiled", written / "model.pt2", 3, SIZE)(images(3))
    expected = logits_of(int8, images(3))
    assert float((got - expected).abs().max()) < 0.02 * float(expected.max() - expected.min())


class Other(nn.Module):
    """A network with the least likely class first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return -self.network(pixels)


def added(path: Path) -> set[str]:
    """The operators whose results are summed in a file."""
    graph = onnx.load(path).graph
    producers = {output: node.op_type for node in graph.node for output in node.output}
    return {producers[name] for node in graph.node if node.op_type == "Add" for name in node.input}


def test_an_adapted_graph_that_computes_something_else_is_not_taken(
    twin: PixelNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(artefacts, "for_runtimes", lambda deployed, _: Other(deployed))
    found = export_model(twin, tmp_path, SIZE, images(32), images(32), ("onnx", "torch_export"))
    assert {name: artefact.adapted for name, artefact in found.items()} == {"onnx": False, "torch_export": None}
    artefact = found["onnx"]
    assert artefact.parity is not None
    assert artefact.parity.disagreements <= 1
    assert artefact.rejected is not None
    assert artefact.rejected.disagreements == 32
    assert added(tmp_path / "model.onnx") == {"Conv", "DequantizeLinear"}, "the graph as it is"

    (warning,) = [record.getMessage() for record in caplog.records if record.name == artefacts.__name__]
    assert "model.onnx: adapted to INT8 runtimes it would not compute what the network computes" in warning
    assert "32 of 32 predictions differ (at most 1 tolerated); it was written unadapted" in warning
    recorded = json.loads(json.dumps(artefact.as_json()))
    assert recorded["adapted"] is False
    assert recorded["parity"]["disagreements"] <= 1
    assert recorded["rejected_parity"]["disagreements"] == 32
    onnx_line, other_line = report(found).splitlines()
    assert re.search(r"; not adapted to INT8 runtimes: logits within [\d.]+, 0\.0% alike$", onnx_line)
    assert "not adapted" not in other_line


def test_an_unadapted_graph_that_computes_something_else_is_an_error(
    twin: PixelNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(artefacts, "ready", lambda network: Other(ready(network)))
    with pytest.raises(UserError, match=r"^model\.onnx does not .* 32 of 32 predictions differ .* was removed$"):
        export_model(twin, tmp_path, SIZE, images(32), images(32), ("onnx",))
    assert "it was written unadapted" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_whether_a_file_was_adapted_is_recorded(twin: PixelNetwork, tmp_path: Path) -> None:
    def recorded(network: nn.Module, calibration: torch.Tensor | None) -> tuple[Any, Any]:
        found = export_model(network, tmp_path, SIZE, images(32), calibration, ("onnx",))
        values = found["onnx"].as_json()
        return values["adapted"], values["rejected_parity"]

    assert recorded(twin, images(32)) == (True, None)
    assert added(tmp_path / "model.onnx") == {"DequantizeLinear"}
    assert recorded(twin, None) == (False, None), "without images to calibrate with"
    assert recorded(plain().eval(), images(32)) == (None, None), "nothing to adapt"


def test_weights_are_stored_in_a_quarter_of_the_bytes(written: Path, tmp_path: Path) -> None:
    whole = export_model(plain(), tmp_path, SIZE)
    for name in FORMATS:
        size = (written / artefacts.FILES[name]).stat().st_size
        overhead = 180_000 if name == "torch_export" else 45_000  # the graph and the scales, whatever the width
        assert size < whole[name].size / 4 + overhead, name
    tensors = safetensors.torch.load_file(written / "model.safetensors")
    by_type = {
        dtype: sum(t.numel() for t in tensors.values() if t.dtype == dtype) for dtype in (torch.int8, torch.float32)
    }
    assert by_type[torch.int8] > 30 * by_type[torch.float32]


def test_onnx_holds_pairs_of_quantize_and_dequantize(written: Path) -> None:
    model = onnx.load(written / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    convolutions = operators.count("Conv")
    assert convolutions > 0
    assert operators.count("QuantizeLinear") >= convolutions
    assert added(written / "model.onnx") == {"DequantizeLinear"}, "summed in INT8"
    assert operators.count("DequantizeLinear") >= 2 * convolutions, "inputs and weights"
    int8_weights = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert sum(len(tensor.dims) == 4 for tensor in int8_weights) == convolutions


def test_multiply_accumulates_are_those_of_the_float_network(int8: nn.Module, twin: PixelNetwork) -> None:
    assert count_macs(int8, SIZE) == count_macs(twin, SIZE) == count_macs(plain(), SIZE)
    assert weights_bytes(int8) < 0.3 * weights_bytes(plain())


def test_scales_of_activations_must_fit(written: Path, int8: nn.Module, tmp_path: Path) -> None:
    scales = activation_scales(int8)
    recipe = json.loads((written / "recipe.json").read_text())
    assert [tuple(scale) for scale in recipe["activation_scales"]] == scales
    with pytest.raises(
        UserError, match=rf"the recipe has 1 scales of activations, but the network needs {len(scales)}"
    ):
        set_activation_scales(int8, scales[:1])


@pytest.mark.parametrize("bits", [2, 4])
def test_learned_steps_take_as_many_bits_as_they_have(tmp_path: Path, bits: int) -> None:
    network = plain().eval()
    learn_steps(network, images(16).split(8), bits, 8)
    found = export_model(network, tmp_path, SIZE, images(16), formats=("safetensors",))["safetensors"]
    loaded: Any = load_recipe(tmp_path)
    torch.testing.assert_close(logits_of(loaded, images(5)), logits_of(network, images(5)), rtol=1e-5, atol=1e-5)
    assert loaded.changes == network.changes
    whole = export_model(plain(), tmp_path / "float", SIZE, formats=("safetensors",))["safetensors"]
    assert found.size < whole.size * (bits + 1) / 32 + 40_000, "first and last layer have 8 bits"
    assert weights_bytes(ready(network)) < 0.3 * weights_bytes(plain())


@pytest.mark.slow
def test_learned_steps_in_the_formats_that_know_none(tmp_path: Path) -> None:
    network = plain().eval()
    learn_steps(network, images(16).split(8), 4, 8)
    for artefact in export_model(network, tmp_path, SIZE, images(16), formats=("onnx", "torch_export")).values():
        assert artefact.deflated < 0.5 * artefact.size, "few different values"
