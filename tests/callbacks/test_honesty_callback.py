from __future__ import annotations

import copy
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from torch import Tensor, nn

from callbacks import CarliniWagner, Honesty, Results
from callbacks.honesty import masking
from compresslens.attacks.honesty import Check
from compresslens.attacks.victim import Victim, is_right
from compresslens.errors import UserError
from compresslens.reporting.honesty_figure import TITLES
from datamodules.selection import balanced_indices
from lightning_modules import ImageClassifier
from tests.lightning_modules.test_classifier import everything
from tests.lightning_modules.tiny import CLASSES, NoiseData, TinyNetwork, on_two_ranks, trainer
from tests.quantization.networks import residual

SMALL: dict[str, Any] = {"samples": 20, "evaluations": 20, "directions": 2, "queries": 4, "apgd_steps": 4}


def fitted(seed: int) -> TinyNetwork:
    """A network that has learned some of the noise's colours; a new one each time."""
    return copy.deepcopy(_fitted(seed))


@cache
def _fitted(seed: int) -> TinyNetwork:
    images, labels = everything(NoiseData(), "train")
    network = TinyNetwork(seed=seed, dropout=0.0)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network


class Thresholded(nn.Module):
    """Rounds its images to nine levels, which has no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images * 8).round() / 8)


def module(network: nn.Module, reference: nn.Module | None = None) -> ImageClassifier:
    shell = ImageClassifier(network)
    if reference is not None:
        shell.set_reference(reference)
    return shell


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(("what", "part"), [("validate", "val"), ("test", "test")])
def test_at_the_end_of_a_test_or_validation(tmp_path: Path, what: str, part: Any) -> None:
    data, network, reference = NoiseData(), fitted(0), fitted(1)
    loop = trainer(tmp_path, [Honesty(**SMALL), Results()])
    getattr(loop, what)(module(network, reference), datamodule=data, verbose=False)
    found = results(tmp_path)
    details = found["details"]["honesty"]

    images, labels = everything(data, part)
    chosen = balanced_indices(data.labels(part), 20, data.seed)
    both = [net.eval()(images[chosen]).argmax(1) == labels[chosen] for net in (network, reference)]
    assert details["images"] == int((both[0] & both[1]).sum()) > 5

    checks = details["checks"]
    assert [check["name"] for check in checks] == list(TITLES)
    outcomes = [check["verdict"] for check in checks]
    assert outcomes[list(TITLES).index("black_box")] == "skipped", "torchattacks' Square cannot do 12×12"
    assert outcomes[list(TITLES).index("transfer")] != "skipped"
    metric = found["metrics"]["robustness/masking"]
    assert metric == {"value": outcomes.count("fail"), "n": 11, "ci95": None, "reference": None}
    assert details["verdict"] == ("unreliable" if "fail" in outcomes else "ok")
    assert found["verdicts"] == {"robustness": details["text"]}
    budgets = {name: SMALL[name] for name in ("evaluations", "directions", "queries", "apgd_steps")}
    assert details["budgets"] == {**budgets, "refine": 0}
    assert imread(tmp_path / "figures" / "honesty.png").shape[1] > 1500
    assert found["wall_seconds"]["honesty"] > 0


def test_masked_gradients_are_told(tmp_path: Path) -> None:
    loop = trainer(tmp_path, [Honesty(**SMALL), Results()])
    loop.test(module(Thresholded(fitted(0)), fitted(0)), datamodule=NoiseData(), verbose=False)
    found = results(tmp_path)
    assert found["metrics"]["robustness/masking"]["value"] >= 5
    assert found["verdicts"]["robustness"].startswith("unreliable: gradients are masked because 100% of the gradients")
    assert found["details"]["honesty"]["verdict"] == "unreliable"


def test_without_a_reference_and_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = copy.deepcopy(fitted(0)).train()
    network.layer1.eval()
    network.classifier.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [part.training for part in network.modules()]
    numbers = []
    for name, callbacks in {"without": [Results()], "with": [Honesty(**SMALL), Results()]}.items():
        pl.seed_everything(1, verbose=False)
        trainer(tmp_path / name, callbacks).test(module(network), datamodule=NoiseData(), verbose=False)
        numbers.append(torch.rand(3).tolist())
        assert [part.training for part in network.modules()] == flags
    assert numbers[0] == numbers[1]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["classifier.bias"]
    checks = results(tmp_path / "with")["details"]["honesty"]["checks"]
    assert {"there is no reference network"} == {c["reason"] for c in checks if c["name"] == "transfer"}


class Constant(nn.Module):
    """Always wrong or without a number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((CLASSES,), value))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), CLASSES)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_network_that_is_right_nowhere(tmp_path: Path, value: float) -> None:
    loop = trainer(tmp_path, [Honesty(**SMALL), Results()])
    loop.test(module(fitted(0), Constant(value)), datamodule=NoiseData(), verbose=False)
    found = results(tmp_path)
    assert found["metrics"]["robustness/masking"] == {"value": None, "n": 0, "ci95": None, "reference": None}
    assert found["verdicts"] == {"robustness": "unreliable: nothing could be checked"}
    assert not (tmp_path / "figures").exists()


def test_not_while_fitting(tmp_path: Path) -> None:
    loop = trainer(tmp_path, [Honesty(**SMALL), Results()], max_epochs=1)
    loop.fit(module(TinyNetwork()), datamodule=NoiseData())
    assert not (tmp_path / "results.json").exists()


def test_nowhere_to_write_to_is_noticed_before_the_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks.Results"):
        trainer(tmp_path, [Honesty()]).fit(module(TinyNetwork()), datamodule=NoiseData())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": 0}, "Honesty: evaluations is 0; it must be at least 1"),
        ({"queries": 0}, "Honesty: queries is 0"),
        ({"directions": 0}, "Honesty: directions is 0"),
        ({"apgd_steps": 0}, "Honesty: apgd_steps is 0"),
        ({"refine": -1}, "Honesty: refine is -1; it must not be negative"),
        ({"samples": 0}, "Honesty: samples is 0"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Honesty(**options)


@pytest.mark.parametrize(
    ("options", "attack", "expected"),
    [
        ({}, None, (40, 0)),
        ({}, {}, (40, 0)),
        ({}, {"evaluations": 30}, (30, 0)),
        ({}, {"evaluations": 30, "refine": 5}, (30, 5)),
        ({"evaluations": 7}, {"evaluations": 30, "refine": 5}, (7, 5)),
        ({"refine": 0}, {"evaluations": 30, "refine": 5}, (30, 0)),
        ({"evaluations": 7, "refine": 3}, None, (7, 3)),
    ],
)
def test_the_attack_in_question_is_the_one_that_is_run(
    tmp_path: Path, options: dict[str, int], attack: dict[str, int] | None, expected: tuple[int, int]
) -> None:
    callbacks = [] if attack is None else [CarliniWagner(**attack)]
    loop = trainer(tmp_path, [Honesty(**options), *callbacks, Results()])
    network = TinyNetwork()
    plain, rounded = (Victim(network, network, value) for value in (False, True))
    budget = Honesty(**options)._attack(loop, [plain])
    assert budget == {"evaluations": expected[0], "refine": expected[1]}
    asked = options.get("refine", (attack or {}).get("refine"))
    for victims in ([rounded, plain], [plain, rounded]):
        assert Honesty(**options)._attack(loop, victims)["refine"] == (60 if asked is None else asked)


def test_its_budget_is_in_the_results(tmp_path: Path) -> None:
    attack = CarliniWagner(samples=5, evaluations=3, refine=2, cost_samples=0)
    small = {name: value for name, value in SMALL.items() if name != "evaluations"}
    loop = trainer(tmp_path, [attack, Honesty(**small), Results()])
    loop.test(module(fitted(0)), datamodule=NoiseData(), verbose=False)
    budgets = results(tmp_path)["details"]["honesty"]["budgets"]
    assert (budgets["evaluations"], budgets["refine"]) == (3, 2)


def test_weights_of_low_precision_are_refused_at_once(tmp_path: Path) -> None:
    loop = trainer(tmp_path, [Honesty(**SMALL), Results()], precision="bf16-true")
    with pytest.raises(UserError, match=r"Honesty needs weights in float32: set trainer\.precision to 32-true"):
        loop.test(module(fitted(0)), datamodule=NoiseData(), verbose=False)


@pytest.mark.slow
def test_what_ships_is_what_is_examined(tmp_path: Path) -> None:
    """The converted network has no gradient; the distances, which do without, can be believed all the same."""
    from compresslens.quantization import calibrate, fake_quantize

    images, labels = everything(NoiseData(), "train")
    network, reference = residual(dropout=0.0), residual(dropout=0.0)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    network.train()
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.eval()
    reference.load_state_dict(network.state_dict())
    fake_quantize(network)
    calibrate(network, [images])
    loop = trainer(tmp_path, [Honesty(**SMALL), Results()])
    loop.test(module(network, reference), datamodule=NoiseData(), verbose=False)
    found = results(tmp_path)
    checks = {check["name"]: check for check in found["details"]["honesty"]["checks"]}
    assert found["details"]["honesty"]["budgets"]["refine"] == 60
    assert checks["gradients"]["verdict"] == "pass"
    assert {checks[name]["verdict"] for name in ("unbounded", "noise", "transfer")} == {"pass"}


def test_failures_among_the_checks_that_could_be_made() -> None:
    def check(verdict: Any) -> Check:
        return Check("x", verdict, None, None, "")

    metric = masking([check("pass"), check("fail"), check("warn"), check("skipped"), check("fail")])
    assert (metric.value, metric.n) == (2.0, 4)
    assert math.isnan(masking([check("skipped")]).value)
    assert math.isnan(masking([]).value)


def test_ties_and_nan_are_not_right() -> None:
    images = torch.rand(3, 3, 4, 4)
    labels = torch.zeros(3, dtype=torch.int64)
    assert not is_right(Constant(0.0), images, labels).any()
    assert not is_right(Constant(math.nan), images, labels).any()
    assert is_right(fitted(0).eval(), *everything(NoiseData(), "val")).float().mean() > 0.5


def on_some_ranks(folder: Path, ranks: int) -> None:
    torch.set_num_threads(1)
    options = {"devices": 2, "strategy": "ddp"} if ranks == 2 else {}
    loop = trainer(folder, [Honesty(**SMALL), Results()], **options)
    loop.test(module(fitted(0), fitted(1)), datamodule=NoiseData(), verbose=False)


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    on_some_ranks(tmp_path / "one", 1)
    assert on_two_ranks(on_some_ranks, tmp_path / "two", 2) == [0, 0]
    one, two = (results(tmp_path / name) for name in ("one", "two"))
    assert one["details"]["honesty"] == two["details"]["honesty"]
    assert one["metrics"] == two["metrics"]
