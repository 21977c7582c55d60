"""The attack as Lightning runs it: which images, which figures, and what it leaves behind."""

from __future__ import annotations

import copy
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from callbacks import Accuracy, CarliniWagner, Footprint, Results
from compresslens.attacks import carlini_wagner_l2
from compresslens.attacks.victim import Victim
from compresslens.errors import UserError
from compresslens.networks import PixelNetwork
from compresslens.quantization import calibrate, fake_quantize
from compresslens.statistics import wilson_interval
from lightning_modules import ImageClassifier
from tests.attacks.test_artefact_attack import Coarse
from tests.lightning_modules.recipes import in_pixels
from tests.lightning_modules.test_classifier import everything
from tests.lightning_modules.tiny import (
    NoiseData,
    TinyNetwork,
    in_process,
    on_two_ranks,
    traces,
    trainer,
    unequal,
    untimed,
)

QUICK: dict[str, Any] = {"evaluations": 6, "cost_samples": 0, "chunk_size": 16}


@cache
def trained(width: int) -> PixelNetwork:
    """A network that knows most of the noise."""
    images, labels = everything(NoiseData(), "train")
    network = in_pixels(TinyNetwork(width, dropout=0.0, seed=width))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(14):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval().requires_grad_(True)


def pair(model: nn.Module | None = None) -> ImageClassifier:
    module = ImageClassifier(copy.deepcopy(trained(6)) if model is None else model)
    module.set_reference(copy.deepcopy(trained(8)))
    return module


def run(folder: Path, module: ImageClassifier, what: str = "test", callback: Any = None, **options: Any) -> Any:
    loop = trainer(folder, [Accuracy(), callback or CarliniWagner(**QUICK), Results()], **options)
    getattr(loop, what)(module, datamodule=NoiseData(), verbose=False)
    return json.loads((folder / "results.json").read_text())


def classified(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images).argmax(1)


# The figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "part"), [("test", "test"), ("validate", "val")])
def test_against_a_plain_loop(tmp_path: Path, what: str, part: str) -> None:
    module = pair()
    written = run(tmp_path, module, what)
    metrics, details = written["metrics"], written["details"]["carlini_wagner"]
    samples = pd.read_parquet(tmp_path / "samples.parquet")

    images, labels = everything(NoiseData(), part)
    ours, theirs = module.model, module.reference
    assert theirs is not None
    both = (classified(ours, images) == labels) & (classified(theirs, images) == labels)
    n = int(both.sum())
    assert 15 < n < len(images)
    assert samples["cw_attacked"].tolist() == both.tolist()
    model, reference = (
        carlini_wagner_l2(network, images[both], labels[both], evaluations=6) for network in (ours, theirs)
    )
    for prefix, result in (("", model), ("reference_", reference)):
        values = samples.loc[samples["cw_attacked"], f"{prefix}cw_l2"]
        assert values.to_numpy() == pytest.approx(result.l2.numpy(), rel=1e-12)
        assert samples.loc[~samples["cw_attacked"], f"{prefix}cw_l2"].isna().all()
        assert samples.loc[samples["cw_attacked"], f"{prefix}cw_evaluations"].eq(6).all()
        key = "reference" if prefix else "value"
        assert metrics["robustness/cw_success"][key] == float(result.success.double().mean())
        assert metrics["robustness/cw_mean_l2"][key] == pytest.approx(float(result.l2.mean()))
        assert metrics["robustness/cw_median_l2"][key] == pytest.approx(float(np.median(result.l2)))
    fooled = int((classified(ours, reference.adversarials) != labels[both]).sum())
    transfer = metrics["robustness/transfer_from_reference"]
    assert (transfer["value"], transfer["n"], transfer["reference"]) == (fooled / n, n, None)
    assert transfer["ci95"] == list(wilson_interval(fooled, n))
    for name in ("cw_success", "cw_mean_l2", "cw_median_l2"):
        low, high = metrics[f"robustness/{name}"]["ci95"]
        assert metrics[f"robustness/{name}"]["n"] == n
        assert low <= metrics[f"robustness/{name}"]["value"] <= high
    assert {name for name in metrics if "robustness" in name} == {
        *("robustness/cw_success", "robustness/cw_mean_l2", "robustness/cw_median_l2"),
        "robustness/transfer_from_reference",
    }
    assert details["images"] == {"wanted": len(images), "covered": len(images), "attacked": n}
    ratio = float(np.exp(np.log(model.l2 / reference.l2).mean()))
    assert details["harder"]["distance_ratio"] == pytest.approx(ratio)
    assert details["slower"] is None
    assert details["settings"]["refine"] == 0
    assert details["notes"] == []
    assert written["split"] == part
    for name in ("carlini_wagner_examples", "carlini_wagner_success"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_cost_of_the_attack_is_measured_apart(tmp_path: Path) -> None:
    module = pair()
    written = run(tmp_path, module, callback=CarliniWagner(samples=14, **{**QUICK, "cost_samples": 7}))
    metrics, details = written["metrics"], written["details"]["carlini_wagner"]
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    run_on = samples["cw_adam_evaluations"].notna()
    images, labels = everything(NoiseData(), "test")
    rows = torch.from_numpy(np.flatnonzero(run_on))
    assert 3 <= len(rows) <= 7
    assert set(rows.tolist()) < set(np.flatnonzero(samples["cw_attacked"].eq(True)).tolist())
    ours, theirs = (
        carlini_wagner_l2(network, images[rows], labels[rows], solver="adam")
        for network in (module.model, module.reference)
    )
    for name, column in (("cw_gradients", "evaluations"), ("cw_first_success", "first_success")):
        attribute = column.replace("evaluations", "gradient_evaluations")
        expected = [getattr(result, attribute).double().numpy() for result in (ours, theirs)]
        assert metrics[f"robustness/{name}"]["value"] == np.median(expected[0])
        assert metrics[f"robustness/{name}"]["reference"] == np.median(expected[1])
        assert metrics[f"robustness/{name}"]["n"] == len(rows)
        assert samples.loc[run_on, f"cw_adam_{column}"].tolist() == expected[0].tolist()
        assert samples.loc[run_on, f"reference_cw_adam_{column}"].tolist() == expected[1].tolist()
    seconds = metrics["robustness/cw_seconds"]
    assert seconds["value"] == pytest.approx(samples.loc[run_on, "cw_adam_seconds"].mean())
    assert seconds["reference"] == pytest.approx(samples.loc[run_on, "reference_cw_adam_seconds"].mean())
    slower = details["slower"]
    ratio = np.exp(np.log(ours.gradient_evaluations / theirs.gradient_evaluations).mean())
    assert slower["evaluations_ratio"] == pytest.approx(float(ratio), rel=1e-6)
    assert slower["seconds_ratio"] == pytest.approx(seconds["value"] / seconds["reference"])
    assert slower["seconds_ratio_without_networks"] == pytest.approx(
        slower["seconds_ratio"] * slower["reference_network_seconds"] / slower["network_seconds"]
    )


def test_without_a_reference(tmp_path: Path) -> None:
    network = copy.deepcopy(trained(6))
    written = run(tmp_path, ImageClassifier(network))
    images, labels = everything(NoiseData(), "test")
    assert written["metrics"]["robustness/cw_success"]["n"] == int((classified(network, images) == labels).sum())
    assert all(metric["reference"] is None for metric in written["metrics"].values())
    assert "robustness/transfer_from_reference" not in written["metrics"]
    assert "harder" not in written["details"]["carlini_wagner"]
    columns = pd.read_parquet(tmp_path / "samples.parquet").columns
    assert not [name for name in columns if name.startswith("reference")]


def test_nothing_to_attack_is_said(tmp_path: Path) -> None:
    network = copy.deepcopy(trained(6))
    network.backbone.classifier.weight.data.neg_()  # type: ignore[union-attr, operator]
    network.backbone.classifier.bias.data.neg_()  # type: ignore[union-attr, operator]
    written = run(tmp_path, pair(network), callback=CarliniWagner(**{**QUICK, "cost_samples": 4}))
    details = written["details"]["carlini_wagner"]
    assert details["images"]["attacked"] == 0
    assert details["notes"] == ["no image is classified correctly by all networks, so nothing was attacked"]
    assert (details["harder"], details["slower"]) == (None, None)
    for name, metric in written["metrics"].items():
        if name.startswith("robustness"):
            assert (metric["value"], metric["ci95"], metric["n"]) == (None, None, 0), name
    assert not (tmp_path / "figures").exists()


def test_failures_are_infinitely_far(tmp_path: Path) -> None:
    """A network without a gradient: an attack on it finds nothing, and no figure may look like robustness."""
    written = run(tmp_path, pair(Coarse(copy.deepcopy(trained(6)), False)))
    metrics, details = written["metrics"], written["details"]["carlini_wagner"]
    n = details["images"]["attacked"]
    assert n > 10
    assert (metrics["robustness/cw_success"]["value"], metrics["robustness/cw_success"]["reference"]) == (0.0, 1.0)
    assert metrics["robustness/cw_median_l2"]["value"] is None
    assert metrics["robustness/cw_mean_l2"]["n"] == 0
    assert details["harder"] is None
    counted = "infinitely far in the median, left out of the mean"
    assert details["notes"] == [f"{n} of {n} attacks on the model failed: {counted}"]
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    assert np.isinf(samples.loc[samples["cw_attacked"], "cw_l2"]).all()
    assert samples.loc[samples["cw_attacked"], "cw_success"].eq(0).all()


def test_a_time_budget_says_what_it_covered(tmp_path: Path) -> None:
    callback = CarliniWagner(**{**QUICK, "chunk_size": 8}, time_budget=1e-9)
    details = run(tmp_path, pair(), callback=callback)["details"]["carlini_wagner"]
    assert details["images"]["covered"] == 8
    assert details["notes"] == ["the time was up after 8 of 43 images; the figures are of those"]


# What ships -----------------------------------------------------------------------------------------------------------


def rounded() -> PixelNetwork:
    network = copy.deepcopy(trained(6))
    fake_quantize(network)
    calibrate(network, [everything(NoiseData(), "train")[0]])
    return network


def test_a_network_with_fake_quantizers_is_attacked_as_int8(tmp_path: Path) -> None:
    module = pair(rounded())
    module.train()
    before = copy.deepcopy(module.model.state_dict())
    written = run(tmp_path, module)
    details = written["details"]["carlini_wagner"]
    assert details["settings"]["refine"] == 60
    assert details["artefact"]["agreement"] > 0.95
    assert details["artefact"]["images"] == 43
    medians = details["artefact"]["median_l2"]
    assert set(medians) == {"straight_through", "transfer", "refinement"}
    assert written["metrics"]["robustness/cw_median_l2"]["value"] <= min(medians.values())
    agreement = f"{details['artefact']['agreement']:.1%}"
    assert details["notes"] == [f"attacked as converted to INT8; {agreement} of its predictions are those of its twin"]
    assert unequal(before, module.model.state_dict()) == []

    samples = pd.read_parquet(tmp_path / "samples.parquet")
    images, labels = everything(NoiseData(), "test")
    artefact = Victim.of(module.model).network
    right = (classified(artefact, images) == labels) & (classified(trained(8), images) == labels)
    assert samples["cw_attacked"].tolist() == right.tolist()
    assert samples.loc[samples["cw_attacked"], "cw_l2"].max() < np.inf
    evaluations = samples.loc[samples["cw_attacked"] & (samples["cw_l2_straight_through"] > 0)]
    assert evaluations["reference_cw_evaluations"].eq(6 + 60).all(), "the same budget for both"
    assert evaluations["cw_evaluations"].median() == 6 + 60
    by_source = samples[["cw_l2_straight_through", "cw_l2_transfer", "cw_l2_refinement"]].min(axis=1)
    assert samples["cw_l2"].dropna().tolist() == by_source.dropna().tolist()


# What it leaves behind ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_put_back(tmp_path: Path, fail: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pair()
    networks: list[Any] = [module.model, module.reference]
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)

    class Watched(CarliniWagner):
        def on_test_epoch_end(self, *arguments: Any) -> None:
            self.before = traces(networks)
            try:
                super().on_test_epoch_end(*arguments)
            finally:
                self.after = traces(networks)

    if fail:
        monkeypatch.setattr("compresslens.attacks.carlini_wagner.project", broken)
    callback = Watched(**QUICK)
    if fail:
        with pytest.raises(RuntimeError, match="in the middle of it"):
            run(tmp_path, module, callback=callback)
    else:
        run(tmp_path, module, callback=callback)
    assert unequal(callback.before, callback.after) == []


def broken(search: Any, evaluations: int) -> None:
    search.evaluate(torch.arange(len(search)), search.images, torch.zeros_like(search.distance))
    raise RuntimeError("in the middle of it")


def test_within_a_fit(tmp_path: Path) -> None:
    """It can be watched epoch by epoch, and the training is bitwise the same."""
    states = []
    for callbacks in ([], [CarliniWagner(**QUICK, every_n_epochs=2), Results()]):
        pl.seed_everything(0, verbose=False)
        module = pair(copy.deepcopy(trained(6)))
        module.optimizer = partial(torch.optim.SGD, lr=0.01)  # type: ignore[assignment]
        loop = trainer(tmp_path, callbacks, max_epochs=3)
        loop.fit(module, datamodule=NoiseData())
        states.append(module.model.state_dict())
    assert unequal(*states) == []
    logged = {name for name in loop.callback_metrics if "robustness" in name}
    assert logged >= {"val/robustness/cw_success", "val/robustness/cw_median_l2"}
    assert not (tmp_path / "results.json").exists()
    assert (tmp_path / "figures" / "carlini_wagner_success_epoch1.png").is_file()


def test_attacks_are_in_float32_whatever_the_evaluation_is_in(tmp_path: Path) -> None:
    one = run(tmp_path / "one", pair())
    other = run(tmp_path / "other", pair(), precision="bf16-mixed")
    name = "robustness/cw_mean_l2"
    assert one["metrics"][name] == other["metrics"][name]


@pytest.mark.parametrize("callbacks", [[], [Footprint(batches=(1,))]], ids=["alone", "after another that uses it"])
def test_a_reference_that_has_to_be_moved_first(tmp_path: Path, callbacks: list[Any]) -> None:
    """Here to another precision; on a GPU, to it. Lightning evaluates in inference mode, which would spoil it."""
    loop = trainer(tmp_path, [*callbacks, CarliniWagner(**QUICK), Results()], precision="64-true")
    loop.validate(pair(), datamodule=NoiseData(), verbose=False)
    success = json.loads((tmp_path / "results.json").read_text())["metrics"]["robustness/cw_success"]
    assert (success["value"], success["reference"]) == (1.0, 1.0)
    assert success["n"] > 10


# Several processes ----------------------------------------------------------------------------------------------------


def attack_on(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    callbacks = [Accuracy(), CarliniWagner(samples=30, evaluations=10, cost_samples=9, chunk_size=7), Results()]
    strategy = "ddp" if devices > 1 else "auto"
    loop = trainer(folder, callbacks, devices=devices, strategy=strategy)
    loop.test(pair(), datamodule=NoiseData(), verbose=False)


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert in_process(attack_on, one, 1) == 0
    assert on_two_ranks(attack_on, two, 2) == [0, 0]
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert untimed(first["metrics"]) == untimed(second["metrics"])
    assert first["metrics"]["robustness/cw_gradients"]["n"] > 3
    details = [results["details"]["carlini_wagner"] for results in (first, second)]
    assert details[0]["harder"] == details[1]["harder"]
    assert details[0]["images"] == details[1]["images"]
    frames = [pd.read_parquet(folder / "samples.parquet") for folder in (one, two)]
    exact = [name for name in frames[0] if "seconds" not in name]
    pd.testing.assert_frame_equal(frames[0][exact], frames[1][exact], check_exact=True)
    for name in ("carlini_wagner_examples", "carlini_wagner_success"):
        pictures = [(folder / "figures" / f"{name}.png").read_bytes() for folder in (one, two)]
        assert pictures[0] == pictures[1]


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": 0}, "CarliniWagner: evaluations is 0; it must be at least 1"),
        ({"refine": -1}, "refine is -1; it must be at least 0"),
        ({"cost_samples": -1}, "cost_samples is -1"),
        ({"square_queries": -1}, "square_queries is -1"),
        ({"chunk_size": 0}, "chunk_size is 0; it must be at least 1"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_settings_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CarliniWagner(**options)


def test_weights_of_low_precision_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set trainer\.precision to 32-true or bf16-mixed"):
        run(tmp_path, pair(), precision="bf16-true")
