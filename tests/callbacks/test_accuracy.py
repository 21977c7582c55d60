from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from callbacks import Accuracy, Results
from callbacks.accuracy import accuracy_metrics, gather, per_sample
from compresslens.errors import UserError
from compresslens.statistics import bootstrap_interval, wilson_interval
from lightning_modules import ImageClassifier
from tests.lightning_modules.test_classifier import everything
from tests.lightning_modules.tiny import CLASSES, NoiseData, TinyNetwork, trainer


def obvious(logits: Tensor, label: int) -> dict[str, float]:
    """The columns of one sample, the long way."""
    scores = [float(score) for score in logits]
    exponentials = [np.exp(score - max(scores)) for score in scores]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return {
        "prediction": order[0],
        "confidence": max(exponentials) / sum(exponentials),
        "margin": scores[label] - max(score for index, score in enumerate(scores) if index != label),
        "top5": label in order[:5],
        "brier": sum(
            (exponential / sum(exponentials) - (1 if index == label else 0)) ** 2
            for index, exponential in enumerate(exponentials)
        ),
    }


def network_outputs(network: TinyNetwork, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images)


@pytest.mark.parametrize(("what", "part", "size"), [("validate", "val", 29), ("test", "test", 43)])
def test_against_a_plain_loop(tmp_path: Path, what: str, part: str, size: int) -> None:
    data, network, reference = NoiseData(), TinyNetwork(), TinyNetwork(6, seed=1)
    module = ImageClassifier(network)
    module.set_reference(reference)
    loop = trainer(tmp_path, [Accuracy(), Results()])
    for _ in range(2):  # the second time around nothing of the first is left
        getattr(loop, what)(module, datamodule=data, verbose=False)

    images, labels = everything(data, part)
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    assert samples["index"].tolist() == list(range(size))
    assert samples["label"].tolist() == labels.tolist()
    for prefix, model in (("", network), ("reference_", reference)):
        expected = [obvious(*pair) for pair in zip(network_outputs(model, images), labels.tolist(), strict=True)]
        for name in ("prediction", "top5"):
            assert samples[prefix + name].tolist() == [row[name] for row in expected]
        for name in ("confidence", "margin", "brier"):
            assert samples[prefix + name].dtype == np.float64
            assert samples[prefix + name].tolist() == pytest.approx([row[name] for row in expected], abs=1e-6)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["split"] == part
    metrics = results["metrics"]
    correct, theirs = samples["prediction"] == samples["label"], samples["reference_prediction"] == samples["label"]
    agreement = samples["prediction"] == samples["reference_prediction"]
    expected_values = {
        "accuracy/top1": (correct.mean(), theirs.mean()),
        "accuracy/top5": (samples["top5"].mean(), samples["reference_top5"].mean()),
        "accuracy/agreement": (agreement.mean(), None),
    }
    for name, (value, of_reference) in expected_values.items():
        assert metrics[name]["value"] == value
        assert metrics[name]["reference"] == of_reference
        assert metrics[name]["n"] == size
        assert metrics[name]["ci95"] == list(wilson_interval(round(value * size), size))
    assert metrics["accuracy/ece"]["ci95"] is None
    brier = {"value": samples["brier"].mean(), "ci95": list(bootstrap_interval(samples["brier"])), "n": size}
    assert metrics["accuracy/brier"] == brier | {"reference": samples["reference_brier"].mean()}
    assert results["wall_seconds"]["accuracy"] > 0


def test_without_a_reference_there_is_nothing_to_agree_with(tmp_path: Path) -> None:
    trainer(tmp_path, [Accuracy(), Results()]).test(
        ImageClassifier(TinyNetwork()), datamodule=NoiseData(), verbose=False
    )
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert sorted(metrics) == ["accuracy/brier", "accuracy/ece", "accuracy/top1", "accuracy/top5"]
    assert all(metric["reference"] is None for metric in metrics.values())
    columns = pd.read_parquet(tmp_path / "samples.parquet").columns
    assert not [name for name in columns if name.startswith("reference")]


def test_validation_within_a_fit_is_not_recorded(tmp_path: Path) -> None:
    loop = trainer(tmp_path, [Accuracy(), Results()], max_epochs=1)
    loop.fit(ImageClassifier(TinyNetwork()), datamodule=NoiseData())
    assert not (tmp_path / "results.json").exists()


def test_some_batches_only(tmp_path: Path) -> None:
    loop = trainer(tmp_path, [Accuracy(), Results()], limit_test_batches=2)
    loop.test(ImageClassifier(TinyNetwork()), datamodule=NoiseData(), verbose=False)
    assert pd.read_parquet(tmp_path / "samples.parquet")["index"].tolist() == list(range(20))


def test_what_an_interrupted_test_collected_is_forgotten(tmp_path: Path) -> None:
    class Interrupt(pl.Callback):
        armed = True

        def on_test_batch_end(self, *args: object) -> None:
            if self.armed:
                raise RuntimeError("interrupted")

    interrupt = Interrupt()
    loop = trainer(tmp_path, [Accuracy(), interrupt, Results()])
    with pytest.raises(RuntimeError, match="interrupted"):
        loop.test(ImageClassifier(TinyNetwork()), datamodule=NoiseData(), verbose=False)
    interrupt.armed = False
    loop.test(ImageClassifier(TinyNetwork()), datamodule=NoiseData(), verbose=False)
    assert len(pd.read_parquet(tmp_path / "samples.parquet")) == 43


def test_nowhere_to_write_to_is_noticed_before_the_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the probes need callbacks.Results among trainer.callbacks"):
        trainer(tmp_path, [Accuracy()]).fit(ImageClassifier(TinyNetwork()), datamodule=NoiseData())


def test_ties_and_extreme_logits() -> None:
    logits = torch.tensor([[2.0, 2.0, 1.0], [1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    values = per_sample(logits, torch.tensor([1, 1, 0]))
    assert values["prediction"].tolist() == [0, 0, 0]
    assert values["margin"].tolist() == [0.0, -2e4, 0.0]
    assert values["confidence"][1] == 1
    assert values["top5"].all(), "three classes"
    assert values["confidence"].dtype == torch.float64
    assert values["brier"][1:].tolist() == pytest.approx([2, (1 - 1 / 3) ** 2 + 2 / 9]), "all that can be wrong"


def test_a_network_that_answers_nan_once() -> None:
    """What is of all images is not defined then, and not that of the others; what counts is counted."""
    logits = torch.zeros(4, CLASSES)
    logits[2] = torch.nan
    columns = {name: value.numpy() for name, value in per_sample(logits, torch.arange(4)).items()}
    samples = {"index": np.arange(4), "label": np.arange(4), **columns}
    metrics = accuracy_metrics(samples)
    for name in ("accuracy/brier", "accuracy/ece"):
        assert np.isnan(metrics[name].value)
        assert (metrics[name].ci95, metrics[name].n) == (None, 4)
    assert metrics["accuracy/top1"].value == 0.25


def test_agreement_of_a_network_with_itself() -> None:
    columns = per_sample(torch.randn(20, CLASSES), torch.randint(CLASSES, (20,)))
    samples = {"index": np.arange(20), "label": np.zeros(20, dtype=int), **{k: v.numpy() for k, v in columns.items()}}
    samples |= {f"reference_{name}": value.numpy() for name, value in columns.items()}
    metrics = accuracy_metrics(samples)
    assert metrics["accuracy/agreement"].value == 1
    assert all(m.value == m.reference for name, m in metrics.items() if name != "accuracy/agreement")


def test_gathering_sorts_by_index() -> None:
    batches = [{"index": np.array([4, 0]), "x": np.array([4.0, 0.0])}, {"index": np.array([2]), "x": np.array([2.0])}]
    assert {name: values.tolist() for name, values in gather(batches).items()} == {"index": [0, 2, 4], "x": [0, 2, 4]}
