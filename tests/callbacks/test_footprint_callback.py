from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import Export, Footprint, Results
from callbacks.footprint import NO_SPEEDUP
from compresslens.errors import UserError
from compresslens.export import runtimes
from compresslens.footprint import peak_memory, weights_bytes
from lightning_modules import ImageClassifier
from tests.lightning_modules.tiny import SIZE, NoiseData, TinyNetwork, trainer


@pytest.mark.parametrize("what", ["validate", "test"])
def test_beside_the_reference(tmp_path: Path, what: str) -> None:
    network, reference = TinyNetwork(), TinyNetwork(6, seed=1)
    module = ImageClassifier(network)
    module.set_reference(reference)
    getattr(trainer(tmp_path, [Footprint(), Results()]), what)(module, datamodule=NoiseData(), verbose=False)
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]

    def macs(width: int) -> int:
        return 36 * width * 27 + 9 * 2 * width * width * 9 + 2 * width * 7

    for key, model, width in (("value", network, 4), ("reference", reference, 6)):
        parameters = sum(p.numel() for p in model.parameters())
        assert metrics["footprint/parameters"][key] == parameters
        zeros = sum(int((p == 0).sum()) for p in model.parameters())
        assert zeros > 0, "the biases of the normalization"
        assert metrics["footprint/nonzero_parameters"][key] == parameters - zeros
        assert metrics["footprint/macs"][key] == macs(width)
        assert metrics["footprint/bytes"][key] == weights_bytes(model)
        assert metrics["footprint/peak_memory_bytes"][key] == peak_memory(model, SIZE)
    assert not any("latency" in name for name in metrics), "there is no artefact to time"
    assert all(metric["ci95"] is None for metric in metrics.values())


def test_not_measured_while_fitting(tmp_path: Path) -> None:
    loop = trainer(tmp_path, [Footprint(), Results()], max_epochs=1)
    loop.fit(ImageClassifier(TinyNetwork()), datamodule=NoiseData())
    assert not (tmp_path / "results.json").exists()


def test_nowhere_to_write_to_is_noticed_before_the_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks.Results"):
        trainer(tmp_path, [Footprint()]).fit(ImageClassifier(TinyNetwork()), datamodule=NoiseData())


def measured(folder: Path, network: TinyNetwork, reference: TinyNetwork | None, **options: Any) -> dict[str, Any]:
    """`results.json` of a short fit and its test."""
    module = ImageClassifier(network)
    if reference is not None:
        module.set_reference(reference)
    settings = {"batches": (1, 3), "seconds": 0.01, "runtimes": ["onnxruntime", "eager"], **options}
    loop = trainer(folder, [Export(("onnx", "torch_export")), Footprint(**settings), Results()], max_epochs=1)
    loop.fit(module, datamodule=NoiseData())
    loop.test(module, datamodule=NoiseData(), verbose=False)
    return json.loads((folder / "results.json").read_text())


def test_artefacts_are_measured_beside_the_reference(tmp_path: Path) -> None:
    results = measured(tmp_path, TinyNetwork(), TinyNetwork(6, seed=1))
    metrics, details = results["metrics"], results["details"]["footprint"]
    for name in ("onnx", "torch_export"):
        found = metrics[f"footprint/bytes_{name}"]
        assert found["value"] == details["artefacts"][name]["deflated_bytes"]
        assert found["reference"] > 0
    assert metrics["footprint/bytes_onnx"]["reference"] > metrics["footprint/bytes_onnx"]["value"]
    assert metrics["footprint/bytes"] == metrics["footprint/bytes_onnx"]
    assert details["bytes"] == "onnx"
    timed = {f"latency_ms_{runtime}_b{batch}" for runtime in ("onnxruntime", "eager") for batch in (1, 3)}
    assert {n.removeprefix("footprint/") for n in metrics if "latency" in n} == {"latency_ms", *timed}
    for name in timed:
        found = metrics[f"footprint/{name}"]
        assert found["value"] > 0
        assert found["reference"] > 0
        assert details["latency"][name.removeprefix("latency_ms_")]["model"]["median_ms"] == found["value"]
    assert metrics["footprint/latency_ms"] == metrics["footprint/latency_ms_onnxruntime_b1"]
    assert metrics["footprint/speedup"]["value"] == details["latency"]["onnxruntime_b1"]["speedup"]
    assert details["latency"]["runtime"] == "onnxruntime"
    assert (details["threads"], details["notes"]) == (1, [])
    assert set(details["versions"]) == {"onnxruntime", "eager"}
    assert details["artefacts"]["onnx"]["parity"]["agreement"] == 1


def test_without_a_reference_there_is_no_speed_up(tmp_path: Path) -> None:
    metrics = measured(tmp_path, TinyNetwork(), None)["metrics"]
    assert "footprint/speedup" not in metrics
    assert metrics["footprint/latency_ms"]["reference"] is None


def test_a_reference_that_cannot_be_exported_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise UserError("tiny cannot be exported as ONNX")

    monkeypatch.setattr("callbacks.footprint.export_model", refuse)  # callbacks.Export has its own
    reference = TinyNetwork(6, seed=1)
    results = measured(tmp_path, TinyNetwork(), reference)
    metrics, details = results["metrics"], results["details"]["footprint"]
    assert details["not_measured"] == {"reference": "tiny cannot be exported as ONNX"}
    assert metrics["footprint/parameters"]["reference"] == sum(p.numel() for p in reference.parameters())
    for name in ("bytes", "bytes_onnx", "latency_ms", "latency_ms_eager_b3"):
        found = metrics[f"footprint/{name}"]
        assert found["value"] > 0, name
        assert found["reference"] is None, name
    assert "footprint/speedup" not in metrics


def test_what_is_not_installed_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = {"onnxruntime": None, "eager": None}
    monkeypatch.setattr("callbacks.footprint.missing", lambda name: lacking.get(name, "not here"))
    results = measured(tmp_path, TinyNetwork(), None, runtimes=None)
    assert results["details"]["footprint"]["not_measured"] == {"openvino": "not here", "compiled": "not here"}
    assert results["details"]["footprint"]["latency"]["runtime"] == "onnxruntime"


def test_a_format_that_is_not_written_is_said(tmp_path: Path) -> None:
    loop = trainer(
        tmp_path,
        [Export(("torch_export",)), Footprint(["onnxruntime", "eager"], (1,), 1, 0.01), Results()],
        max_epochs=1,
    )
    module = ImageClassifier(TinyNetwork())
    loop.fit(module, datamodule=NoiseData())
    loop.test(module, datamodule=NoiseData(), verbose=False)
    details = json.loads((tmp_path / "results.json").read_text())["details"]["footprint"]
    assert details["not_measured"] == {"onnxruntime": "callbacks.Export does not write onnx"}
    assert (details["bytes"], details["latency"]["runtime"]) == ("torch_export", "eager")


def test_zeros_that_are_stored_are_said_to_bring_no_speed(tmp_path: Path) -> None:
    network = TinyNetwork()
    loop = trainer(tmp_path, [Footprint(), Results()])
    loop.test(ImageClassifier(network), datamodule=NoiseData(), verbose=False)
    assert json.loads((tmp_path / "results.json").read_text())["details"]["footprint"]["notes"] == []
    with torch.no_grad():
        network.layer2[0].weight[:, 0] = 0
    loop.test(ImageClassifier(network), datamodule=NoiseData(), verbose=False)
    assert json.loads((tmp_path / "results.json").read_text())["details"]["footprint"]["notes"] == [NO_SPEEDUP]


def test_export_must_come_first(tmp_path: Path) -> None:
    loop = trainer(tmp_path, [Footprint(), Export(("onnx",)), Results()])
    with pytest.raises(UserError, match=r"put callbacks\.Export before callbacks\.Footprint"):
        loop.test(ImageClassifier(TinyNetwork()), datamodule=NoiseData())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtimes": ["onnx"]}, "there is no runtime 'onnx'"),
        ({"batches": (32,)}, "batches must be positive and include 1"),
        ({"batches": (1, 0)}, "batches must be positive and include 1"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Footprint(**options)


def test_a_runtime_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callbacks.footprint.missing", lambda name: f"{name} is not installed: pip install it")
    with pytest.raises(UserError, match="Footprint cannot measure in openvino: openvino is not installed"):
        Footprint(runtimes=["openvino"])
    Footprint()
    assert runtimes.RUNTIMES[0] == "openvino"
