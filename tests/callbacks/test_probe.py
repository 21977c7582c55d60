"""When probes run, on which images, and that they leave everything as it was."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from callbacks import Accuracy, Results
from callbacks.accuracy import gather
from callbacks.probe import Findings, Probe
from callbacks.probe_images import Share, dealt, in_turn
from callbacks.probe_state import undisturbed
from compresslens.errors import UserError
from compresslens.reporting import CurvesLogger
from compresslens.reporting.metric import Metric
from lightning_modules import ImageClassifier
from tests.lightning_modules.tiny import NoiseData, TinyNetwork, trainer, unequal


class Brightness(Probe):
    """Notes the images and their mean brightness, and does all that a probe must not leave behind."""

    name = "brightness"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[Any] = []
        self.fail = False

    def measure(self, module: Any, share: Share) -> Findings:
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        batches = []
        for chunk in share.chunks(5):
            with torch.enable_grad():
                module.model(chunk.images.clone().requires_grad_()).sum().backward()
            batches.append({"index": chunk.indices, "brightness": chunk.images.mean((1, 2, 3)).numpy()})
        self.seen.append([int(index) for batch in batches for index in batch["index"]])
        disturb(module)
        if self.fail:
            raise RuntimeError("failed")
        samples = gather(batches)
        return Findings(
            {"brightness/mean": Metric(float(samples["brightness"].mean()), n=len(samples["index"]))},
            {"chunks": len(batches)},
            samples,
            {"brightness": lambda path: path.write_bytes(b"picture") and None},
        )


def disturb(module: Any) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.requires_grad_(False)
    module.train()
    torch.rand(3), np.random.rand(3), random.random()


def state(module: nn.Module) -> dict[str, Any]:
    return {
        "flags": [part.training for part in module.modules()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "required": [p.requires_grad for p in module.parameters()],
        "random": [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()],  # type: ignore[index]
    }


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


# When -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "split", "size"), [("test", "test", 43), ("validate", "val", 29)])
def test_after_a_test_and_a_validation(tmp_path: Path, what: str, split: str, size: int) -> None:
    data, probe = NoiseData(), Brightness(samples=21)
    loop = trainer(tmp_path, [Accuracy(), probe, Results()], logger=CurvesLogger(str(tmp_path)))
    getattr(loop, what)(ImageClassifier(TinyNetwork()), datamodule=data, verbose=False)
    (seen,) = probe.seen
    labels = data.labels(split)  # type: ignore[arg-type]
    assert np.bincount(labels[seen]).tolist() == [3] * 7, "as many of each class"
    assert sorted(labels[seen[:7]]) == list(range(7)), "the classes take turns"

    written = results(tmp_path)
    images = torch.stack([data.dataset(split)[index][0] for index in seen])  # type: ignore[arg-type]
    assert written["split"] == split
    assert written["metrics"]["brightness/mean"]["value"] == pytest.approx(float(images.mean()))
    assert written["metrics"]["brightness/mean"]["n"] == 21
    assert written["details"]["brightness"] == {"chunks": 5}
    assert written["wall_seconds"]["brightness"] > 0
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    assert len(samples) == size, "the others have no value"
    assert samples.loc[samples["brightness"].notna(), "index"].tolist() == sorted(seen)
    assert "brightness/mean" in (tmp_path / "metrics.csv").read_text()
    assert (tmp_path / "figures" / "brightness.png").read_bytes() == b"picture"


def test_within_a_fit_only_if_asked(tmp_path: Path) -> None:
    probes = [Brightness(), Brightness(every_n_epochs=2)]
    loop = trainer(tmp_path, [probes[0], Results()], max_epochs=5)
    loop.fit(ImageClassifier(TinyNetwork()), datamodule=NoiseData())
    loop = trainer(tmp_path, [probes[1], Results()], max_epochs=5, num_sanity_val_steps=1)
    loop.fit(ImageClassifier(TinyNetwork()), datamodule=NoiseData())
    assert [len(probe.seen) for probe in probes] == [0, 2]
    assert loop.callback_metrics["val/brightness/mean"] > 0
    assert not (tmp_path / "results.json").exists()
    pictures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert pictures == ["brightness_epoch1.png", "brightness_epoch3.png"]


def test_the_data_say_how_many_images(tmp_path: Path) -> None:
    probe = Brightness()
    loop = trainer(tmp_path, [probe, Results()])
    loop.test(ImageClassifier(TinyNetwork()), datamodule=NoiseData(probe_samples=14), verbose=False)
    larger = Brightness(samples=30)
    loop = trainer(tmp_path, [larger, Results()])
    loop.test(ImageClassifier(TinyNetwork()), datamodule=NoiseData(probe_samples=14), verbose=False)
    assert (len(probe.seen[0]), len(larger.seen[0])) == (14, 30)
    assert set(probe.seen[0]) < set(larger.seen[0])


def test_a_time_budget_ends_it_between_chunks(tmp_path: Path) -> None:
    probe = Brightness(samples=21, time_budget=1e-9)
    loop = trainer(tmp_path, [probe, Results()])
    loop.test(ImageClassifier(TinyNetwork()), datamodule=NoiseData(), verbose=False)
    assert len(probe.seen[0]) == 5, "the first chunk is always done"
    assert len(set(NoiseData().labels("test")[probe.seen[0]])) == 5, "and balanced"


# What it leaves behind ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_put_back(tmp_path: Path, fail: bool) -> None:
    pl.seed_everything(7, verbose=False)
    module = ImageClassifier(TinyNetwork())
    module.set_reference(TinyNetwork(6))
    module.model.layer1.train(False)  # type: ignore[union-attr]
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    probe, watch = Brightness(), Watch()
    probe.fail = fail
    loop = trainer(tmp_path, [watch.before, probe, watch.after, Results()], max_epochs=1)
    watch.module = module
    if fail:
        with pytest.raises(RuntimeError, match="failed"):
            loop.test(module, datamodule=NoiseData(), verbose=False)
        watch.note()  # Lightning's own flags are as they were in the test
    else:
        loop.test(module, datamodule=NoiseData(), verbose=False)
    before, after = watch.notes
    assert len(probe.seen) == 1
    assert unequal(before["gradients"], after["gradients"]) == []
    assert unequal(before["required"], after["required"]) == []
    assert unequal(before["random"], after["random"]) == []
    assert before["flags"] == after["flags"]
    assert not any(p.requires_grad for p in module.reference.parameters())  # type: ignore[union-attr]


class Watch:
    """Notes the state just before and just after another callback."""

    def __init__(self) -> None:
        self.module: Any = None
        self.notes: list[dict[str, Any]] = []
        self.before, self.after = pl.Callback(), pl.Callback()
        for callback in (self.before, self.after):
            callback.on_test_epoch_end = self.note  # type: ignore[method-assign]

    def note(self, *args: Any) -> None:
        self.notes.append(state(self.module))


def test_a_fit_goes_on_as_if_it_had_not_been_probed(tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [Brightness(every_n_epochs=1), Results()]):
        pl.seed_everything(0, verbose=False)
        module = ImageClassifier(TinyNetwork(), partial(torch.optim.SGD, lr=0.1, momentum=0.9))
        loop = trainer(tmp_path, callbacks, max_epochs=2)
        loop.fit(module, datamodule=NoiseData())
        states.append({**module.model.state_dict(), "random": torch.get_rng_state()})
    assert unequal(*states) == []


def test_what_happens_inside_follows_from_the_seed() -> None:
    def draw(seed: int) -> list[Any]:
        with undisturbed([TinyNetwork()], seed, torch.device("cpu")):
            return [float(torch.rand(())), float(np.random.rand()), random.random()]

    assert draw(3) == draw(3)
    assert all(one != other for one, other in zip(draw(3), draw(4), strict=True))


# What it is given -----------------------------------------------------------------------------------------------------


def test_taking_turns_against_a_plain_loop() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 40)
    left = {label: [i for i in range(40) if labels[i] == label] for label in range(5)}
    expected = []
    while any(left.values()):
        expected += [left[label].pop(0) for label in range(5) if left[label]]
    assert in_turn(labels).tolist() == expected
    assert in_turn(np.zeros(0, dtype=np.int64)).tolist() == []


@pytest.mark.parametrize(("size", "ranks"), [(10, 1), (10, 3), (2, 3)])
def test_ranks_share_the_images(size: int, ranks: int) -> None:
    dataset = [(torch.full((3, 2, 2), number / 10), number, torch.ones(2, 2, dtype=torch.bool)) for number in range(10)]
    indices = np.arange(10)[::-1][:size].copy()
    found: list[tuple[int, int]] = []
    for rank in range(ranks):
        share = Share(
            dataset,
            indices,
            np.arange(10)[:size] % 4,
            rank,
            ranks,
            torch.device("cpu"),
            torch.float64,
            float("inf"),
            None,
        )
        for chunk in share.chunks(2):
            assert chunk.images.dtype == torch.float64
            assert chunk.labels.tolist() == chunk.indices.tolist()
            assert chunk.masks is not None
            assert chunk.images[:, 0, 0, 0].tolist() == pytest.approx(chunk.indices / 10)
            found += list(zip(chunk.positions.tolist(), chunk.indices.tolist(), strict=True))
    assert sorted(found) == list(enumerate(indices.tolist())), "each once, on one rank"


@pytest.mark.parametrize(("classes", "ranks"), [(10, 2), (7, 2), (10, 4), (2, 3), (3, 4), (1, 3), (5, 1)])
def test_each_rank_sees_all_classes(classes: int, ranks: int) -> None:
    """Even if it gets no further than the others: what all have covered when the time is up remains balanced."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), 3 * ranks))
    labels = labels[in_turn(labels)]
    of_ranks = dealt(labels, ranks)
    of_one_turn = np.bincount(of_ranks[:classes], minlength=ranks)
    assert np.ptp(of_one_turn) <= 1, "no rank waits for another, even if there are few images of each class"
    assert np.bincount(of_ranks, minlength=ranks).tolist() == [3 * classes] * ranks, "as many on each"
    for rank in range(ranks):
        mine = labels[of_ranks == rank]
        assert np.bincount(mine, minlength=classes).tolist() == [3] * classes, "and as many of each class"
        for count in range(1, len(mine)):
            covered = np.bincount(mine[:count], minlength=classes)
            assert np.ptp(covered) <= 2, f"after {count} images of a slow rank"


@pytest.mark.parametrize("slow", [0, 1])
def test_two_ranks_of_which_one_runs_out_of_time(slow: int) -> None:
    """Ten classes: taking images in turn, one rank would see the even ones and the other the odd ones."""
    labels = np.arange(60) % 10
    dataset = [(torch.zeros(3, 2, 2), label) for label in labels.tolist()]
    counts = np.zeros(10, dtype=int)
    for rank in range(2):
        ends = float("inf") if rank != slow else 0.0  # no chunk but the first
        share = Share(dataset, np.arange(60), labels, rank, 2, torch.device("cpu"), torch.float32, ends, None)
        for chunk in share.chunks(10):
            counts += np.bincount(chunk.labels.numpy(), minlength=10)
    assert counts.tolist() == [4] * 10


def test_the_progress_bar_gets_past_rich(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    class Proxy(io.StringIO):
        rich_proxied_file = screen = io.StringIO()

    dataset = [(torch.zeros(3, 2, 2), 0)] * 4
    monkeypatch.setattr(sys, "stderr", Proxy())
    share = Share(
        dataset,
        np.arange(4),
        np.zeros(4, dtype=np.int64),
        0,
        1,
        torch.device("cpu"),
        torch.float32,
        float("inf"),
        "probing",
    )
    list(share.chunks(2))
    assert "probing" in Proxy.screen.getvalue()


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "Brightness: samples is 0; it must be at least 1, or null"),
        ({"every_n_epochs": 0}, "Brightness: every_n_epochs is 0"),
        ({"time_budget": 0.0}, "Brightness: time_budget is 0.0; it must be positive"),
        ({"time_budget": float("nan")}, "Brightness: time_budget is nan"),
    ],
)
def test_settings_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Brightness(**options)


Plain = type("Plain", (pl.LightningDataModule,), {"test_dataloader": lambda self: []})


@pytest.mark.parametrize(
    ("callbacks", "data", "message"),
    [
        (lambda: [Brightness()], NoiseData, r"the probes need callbacks\.Results"),
        (
            lambda: [Brightness(), Results()],
            Plain,
            "Plain has no fixed images to probe: derive it from ImageDataModule",
        ),
    ],
)
def test_noticed_before_the_fit(tmp_path: Path, callbacks: Callable[[], Any], data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, callbacks()).test(ImageClassifier(TinyNetwork()), datamodule=data())
