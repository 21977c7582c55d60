from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from callbacks import BestCheckpoint, Export, Footprint, Results
from callbacks.export import report
from compresslens.errors import UserError
from compresslens.export import artefacts, runtimes
from compresslens.networks import PixelNetwork
from compresslens.quantization import calibrate, fake_quantize
from lightning_modules import ImageClassifier
from tests.lightning_modules.tiny import CLASSES, SIZE, NoiseData, TinyNetwork, on_two_ranks, trainer

FORMATS = ("onnx", "torch_export")  # create_network did not make TinyNetwork


def fitted(folder: Path, export: Export, *more: Any) -> tuple[Any, ImageClassifier]:
    """A trainer that has fitted a network for an epoch."""
    loop = trainer(folder, [export, *more, BestCheckpoint()], max_epochs=1)
    module = ImageClassifier(TinyNetwork())
    loop.fit(module, datamodule=NoiseData())
    return loop, module


def test_the_test_that_ends_a_fit_exports_the_weights_it_tests(tmp_path: Path) -> None:
    export = Export(FORMATS)
    loop, module = fitted(tmp_path, export)
    assert not (tmp_path / "model").exists(), "not before the best weights are loaded"
    with torch.no_grad():
        module.model.classifier.weight.zero_()
    best = tmp_path / "checkpoints" / "best.ckpt"
    loop.test(module, datamodule=NoiseData(), ckpt_path=best, weights_only=True, verbose=False)
    weights = torch.load(best, weights_only=True)["state_dict"]
    expected = TinyNetwork().eval()
    expected.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    images = torch.rand(4, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            runtimes.run("onnxruntime", tmp_path / "model" / "model.onnx", images), expected(images)
        )
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.onnx", "model.pt2"]
    parity = export.artefacts["onnx"].parity
    assert parity is not None
    assert parity.images == 29, "the probe subset of the validation split"
    lines = report(export.artefacts).splitlines()
    assert f"model.onnx: {export.artefacts['onnx'].size:,} bytes" in lines[0]
    assert "100.0% of 29 predictions alike (onnxruntime)" in lines[0]


def test_a_test_by_itself_exports_nothing(tmp_path: Path) -> None:
    export = Export(FORMATS)
    loop, module = fitted(tmp_path, export)
    loop.test(module, datamodule=NoiseData(), verbose=False)
    assert set(export.artefacts) == set(FORMATS)
    loop.test(module, datamodule=NoiseData(), verbose=False)
    assert export.artefacts == {}, "what is there may be of other weights"
    loop = trainer(tmp_path / "other", [Export(FORMATS)])
    loop.test(module, datamodule=NoiseData(), verbose=False)
    loop.validate(module, datamodule=NoiseData(), verbose=False)
    assert not (tmp_path / "other" / "model").exists()


def test_an_artefact_that_is_wrong_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, module = fitted(tmp_path, Export(FORMATS))
    monkeypatch.setattr(artefacts, "ready", lambda network: TinyNetwork(seed=5).eval())
    with pytest.raises(UserError, match=r"model\.onnx does not compute what the network computes"):
        loop.test(module, datamodule=NoiseData(), verbose=False)
    assert list((tmp_path / "model").iterdir()) == []


def test_what_cannot_be_written_is_said_before_the_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a TinyNetwork cannot be written as safetensors with a recipe"):
        fitted(tmp_path, Export(("onnx", "safetensors")))
    assert not (tmp_path / "checkpoints").exists()


def test_by_default_all_that_suits_is_written(tmp_path: Path) -> None:
    """Of somebody's own network nobody could follow the recipe."""
    export = Export()
    loop, module = fitted(tmp_path, export)
    loop.test(module, datamodule=NoiseData(), verbose=False)
    assert tuple(export.artefacts) == FORMATS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ("onxx",)}, "there is no format 'onxx'"),
        ({"tolerance": -0.1}, "tolerance must not be negative"),
        ({"int8_agreement": 1.1}, r"int8_agreement must be in \[0, 1\]"),
    ],
)
def test_settings_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Export(**options)


@pytest.mark.slow
def test_an_int8_network(tmp_path: Path) -> None:
    network = PixelNetwork(TinyNetwork(), (0.5,) * 3, (0.5,) * 3, "tiny", CLASSES, SIZE)
    fake_quantize(network)
    calibrate(network.eval(), [batch[0] for batch in NoiseData().calibration_loader(64)])
    export, footprint = Export(FORMATS), Footprint(["onnxruntime"], (1,), 1, 0.01)
    loop = trainer(tmp_path, [export, footprint, Results()])
    export.wanted = True
    loop.test(ImageClassifier(network), datamodule=NoiseData(), verbose=False)
    operators = [node.op_type for node in onnx.load(tmp_path / "model" / "model.onnx").graph.node]
    assert operators.count("QuantizeLinear") >= operators.count("Conv") == 2
    for artefact in export.artefacts.values():
        assert artefact.parity is not None
        assert artefact.parity.disagreements <= 1
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert metrics["footprint/macs"]["value"] == 36 * 4 * 27 + 9 * 2 * 4 * 4 * 9 + 2 * 4 * 7


def on_a_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    footprint = Footprint(runtimes=["onnxruntime"], seconds=0.01)
    loop = trainer(
        folder, [Export(FORMATS), footprint, Results(), BestCheckpoint()], max_epochs=1, devices=2, strategy="ddp"
    )
    module = ImageClassifier(TinyNetwork())
    loop.fit(module, datamodule=NoiseData())
    loop.test(module, datamodule=NoiseData(), verbose=False)


@pytest.mark.slow
def test_one_of_two_ranks_exports_while_the_other_waits(tmp_path: Path) -> None:
    assert on_two_ranks(on_a_rank, tmp_path) == [0, 0]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.onnx", "model.pt2"]
    assert "footprint/latency_ms" in json.loads((tmp_path / "results.json").read_text())["metrics"]
