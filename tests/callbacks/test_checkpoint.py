from __future__ import annotations

import errno
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import SGD

from callbacks import BestCheckpoint, LastCheckpoint
from callbacks.checkpoint import before_the_batch
from compresslens.errors import UserError
from compresslens.reporting import CurvesLogger
from lightning_modules import ImageClassifier
from tests.lightning_modules import recipes
from tests.lightning_modules.tiny import BATCHES, NoiseData, TinyNetwork, probes, trainer


def classifier() -> ImageClassifier:
    return ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1))


def load(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


class Spy(pl.Callback):
    """Writes down which step `last.ckpt` is of, before each batch and at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[int | None] = []

    def on_train_batch_end(self, *args: Any) -> None:
        exists = (self.folder / "checkpoints" / "last.ckpt").is_file()
        self.steps.append(load(self.folder, "last")["global_step"] if exists else None)

    on_fit_end = on_train_batch_end


# When and what is saved -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cadence", "saved"),
    [
        (4, [None] * 4 + [4] * 4 + [8] + [9] * 3 + [12] * 4 + [16] * 2 + [18]),
        (0, [None] * 9 + [9] * 9 + [18]),
        (100, [None] * 9 + [9] * 9 + [18]),
        (9, [None] * 9 + [9] * 9 + [18]),
        (1, [None, *range(1, 18), 18]),
    ],
)
def test_cadence(tmp_path: Path, cadence: int, saved: list[int | None]) -> None:
    spy = Spy(tmp_path)
    loop = trainer(tmp_path, [LastCheckpoint(cadence), spy], max_epochs=2)
    loop.fit(classifier(), datamodule=NoiseData())
    assert spy.steps == saved


def test_cadence_counts_optimizer_steps(tmp_path: Path) -> None:
    spy = Spy(tmp_path)
    loop = trainer(tmp_path, [LastCheckpoint(2), spy], max_epochs=1, accumulate_grad_batches=2)
    loop.fit(classifier(), datamodule=NoiseData())
    assert spy.steps == [None] * 4 + [2] * 4 + [4, 5], "steps after batches 2, 4, 6, 8 and the last one"


class Accuracies(ImageClassifier):
    """Its validation accuracy is what the test says."""

    def __init__(self, values: list[float]) -> None:
        super().__init__(TinyNetwork(), partial(SGD, lr=0.1))
        self.values = values

    def on_validation_epoch_end(self) -> None:
        self.log("val/top1", self.values[self.current_epoch])


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.5, 0.7, 0.6], "max", 1),
        ([0.5, 0.5, 0.4], "max", 0),
        ([0.5, 0.7, 0.4], "min", 2),
        ([math.nan, 0.2, math.nan], "max", 1),
        ([math.nan, math.nan, 0.3], "min", 2),
    ],
)
def test_the_best_is_kept(tmp_path: Path, values: list[float], mode: Any, best: int) -> None:
    loop = trainer(tmp_path, [BestCheckpoint(mode=mode)])
    loop.fit(Accuracies(values), datamodule=NoiseData())
    saved = load(tmp_path, "best")
    assert saved["epoch"] == best
    assert saved["callbacks"]["BestCheckpoint"]["best"] == pytest.approx(values[best])


@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {"max_steps": 7}])
def test_without_a_validation_the_last_weights_are_the_best(tmp_path: Path, options: dict[str, Any]) -> None:
    loop = trainer(tmp_path, [BestCheckpoint(), LastCheckpoint()], **{"max_epochs": 2, **options})
    loop.fit(module := classifier(), datamodule=NoiseData())
    saved = load(tmp_path, "best")
    assert saved["global_step"] == loop.global_step == options.get("max_steps", 2 * BATCHES)
    assert all(torch.equal(saved["state_dict"][name], value) for name, value in module.state_dict().items())


def test_an_unknown_metric_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no metric 'val/acc' to monitor; there are: train/loss, val/ece, val/loss, val/top1"
    ):
        trainer(tmp_path, [BestCheckpoint("val/acc")]).fit(classifier(), datamodule=NoiseData())


def test_a_cadence_that_makes_no_sense() -> None:
    with pytest.raises(UserError, match="every_n_steps must not be negative"):
        LastCheckpoint(-1)


def test_trying_out_saves_nothing(tmp_path: Path) -> None:
    loop = trainer(tmp_path, [BestCheckpoint(), LastCheckpoint()], fast_dev_run=True)
    loop.fit(classifier(), datamodule=NoiseData())
    assert not (tmp_path / "checkpoints").exists()


def test_a_fit_of_no_epochs_saves_what_there_is(tmp_path: Path) -> None:
    """As a compression that needs no training does; the sanity check's validation does not count."""
    loop = trainer(tmp_path, [BestCheckpoint(), LastCheckpoint()], num_sanity_val_steps=2, max_epochs=0)
    loop.fit(module := classifier(), datamodule=NoiseData())
    saved = load(tmp_path, "best")
    assert math.isnan(saved["callbacks"]["BestCheckpoint"]["best"])
    assert all(torch.equal(saved["state_dict"][name], value) for name, value in module.state_dict().items())


def test_a_network_that_is_still_being_compressed_is_not_the_best(tmp_path: Path) -> None:
    module = classifier()
    module.compression_finished = False  # type: ignore[attr-defined]
    loop = trainer(tmp_path, [BestCheckpoint(), LastCheckpoint()], max_epochs=2)
    loop.fit(module, datamodule=NoiseData())
    assert math.isnan(load(tmp_path, "best")["callbacks"]["BestCheckpoint"]["best"]), "only what was there at the end"


# How it is saved ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    last = LastCheckpoint()
    loop = trainer(tmp_path, [last], max_epochs=1)
    loop.fit(classifier(), datamodule=NoiseData())
    path = tmp_path / "checkpoints" / "last.ckpt"
    before = path.read_bytes()

    def half(file: Path, weights_only: bool) -> None:
        file.write_bytes(before[: len(before) // 2])
        raise failure

    monkeypatch.setattr(loop, "save_checkpoint", half)
    expected = UserError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as error:
        last.save(loop)
    if isinstance(failure, OSError):
        assert str(error.value) == f"cannot write {path}: No space left on device"
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Break(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
            if trainer.global_step == 6:
                module.model.classifier.weight.data[0, 0] = torch.inf

        def on_after_backward(self, trainer: pl.Trainer, module: Any) -> None:
            module.zero_grad()

    module = classifier()
    module.training_loss = lambda *args: module.model.classifier.bias.sum()  # type: ignore[method-assign]
    with pytest.raises(UserError) as error:
        trainer(tmp_path, [LastCheckpoint(4), Break()]).fit(module, datamodule=NoiseData())
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert str(error.value) == (
        f"model.classifier.weight is not finite at step 8; last good checkpoint: {last}; lower the learning rate"
    )
    assert load(tmp_path, "last")["global_step"] == 4


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.classifier,
        recipes.hints,
        recipes.averaged_hints,
        recipes.workers,
        recipes.plateau,
        recipes.stopped_early,
    ],
    ids=lambda recipe: recipe.__name__,
)
def test_checkpoints_hold_plain_values_and_no_paths(tmp_path: Path, recipe: recipes.Recipe) -> None:
    folder = tmp_path / "a_telling_name"
    module, data, options, more = recipe()
    data.num_workers = 0
    callbacks = [BestCheckpoint(), LastCheckpoint(4), *more, *probes()]
    loop = trainer(folder, callbacks, **{**options, "max_epochs": 1, "logger": CurvesLogger(str(folder))})
    loop.fit(module, datamodule=data)
    for name in ("best", "last"):
        load(folder, name)  # refuses anything that could run code
        content = (folder / "checkpoints" / f"{name}.ckpt").read_bytes()
        for trace in (b"a_telling_name", str(Path.home()).encode() + b"/", str(tmp_path).encode()):
            assert trace not in content


def test_checkpoints_hold_no_teacher(tmp_path: Path) -> None:
    module, data, _, _ = recipes.cached()
    trainer(tmp_path, [LastCheckpoint()], max_epochs=1).fit(module, datamodule=data)
    state = load(tmp_path, "last")["state_dict"]
    assert set(state) == {f"model.{name}" for name in TinyNetwork().state_dict()}


# Lightning's counters -------------------------------------------------------------------------------------------------


def test_counters_are_put_back_even_if_saving_fails(tmp_path: Path) -> None:
    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            def counters() -> str:
                return str(
                    (trainer.fit_loop.epoch_loop.batch_progress, trainer.fit_loop.epoch_loop._batches_that_stepped)
                )

            before = counters()
            with pytest.raises(RuntimeError, match="full"), before_the_batch(trainer):  # noqa: PT012
                assert counters() != before
                raise RuntimeError("full")
            assert counters() == before

    trainer(tmp_path, [Look()], max_epochs=1).fit(classifier(), datamodule=NoiseData())


def test_a_fit_that_is_complete_is_not_continued(tmp_path: Path) -> None:
    trainer(tmp_path, [LastCheckpoint()], max_epochs=1).fit(classifier(), datamodule=NoiseData())
    spy = Spy(tmp_path)
    again = trainer(tmp_path, [LastCheckpoint(), spy], max_epochs=1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    again.fit(classifier(), datamodule=NoiseData(), ckpt_path=last, weights_only=True)
    assert spy.steps == [BATCHES], "only the end of the fit"
    assert again.current_epoch == 1


def test_a_complete_fit_may_be_prolonged(tmp_path: Path) -> None:
    trainer(tmp_path, [LastCheckpoint()], max_epochs=1).fit(classifier(), datamodule=NoiseData())
    longer = trainer(tmp_path, [LastCheckpoint()], max_epochs=2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    longer.fit(module := classifier(), datamodule=NoiseData(), ckpt_path=last, weights_only=True)
    assert longer.global_step == 2 * BATCHES
    whole = trainer(tmp_path / "whole", [LastCheckpoint()], max_epochs=2)
    whole.fit(other := classifier(), datamodule=NoiseData())
    pairs = zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
