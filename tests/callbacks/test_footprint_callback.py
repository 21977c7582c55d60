from __future__ import annotations

import json
from pathlib import Path

import pytest

from callbacks import Footprint, Results
from compresslens.errors import UserError
from compresslens.footprint import weights_bytes
from lightning_modules import ImageClassifier
from tests.lightning_modules.tiny import NoiseData, TinyNetwork, trainer


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
    assert all(metric["ci95"] is None for metric in metrics.values())


def test_not_measured_while_fitting(tmp_path: Path) -> None:
    loop = trainer(tmp_path, [Footprint(), Results()], max_epochs=1)
    loop.fit(ImageClassifier(TinyNetwork()), datamodule=NoiseData())
    assert not (tmp_path / "results.json").exists()


def test_nowhere_to_write_to_is_noticed_before_the_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks.Results"):
        trainer(tmp_path, [Footprint()]).fit(ImageClassifier(TinyNetwork()), datamodule=NoiseData())
