"""A run that was killed and resumed sees what the uninterrupted run saw, batch for batch."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torchvision.transforms import v2

from compresslens.errors import UserError
from tests.datamodules.tiny import Recorder, TinyData

BATCHES = 29 // 4


class SaveAtEpochEnds(Callback):
    """Saves after every validation and after every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"validation{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"epoch{trainer.global_step}.ckpt")


def fit(
    callbacks: list[Callback] | None = None,
    stop_at: int | None = None,
    resume: Path | None = None,
    data: dict[str, Any] | None = None,
    **options: Any,
) -> Recorder:
    pl.seed_everything(0, verbose=False)
    module = Recorder(stop_at)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        callbacks=callbacks,
        num_sanity_val_steps=0,
        **{"max_epochs": 3, **options},
    )
    trainer.fit(module, datamodule=TinyData(**{"seed": 3, **(data or {})}), ckpt_path=resume, weights_only=False)
    return module


def every_steps(folder: Path, steps: int) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder, filename="step{step}", auto_insert_metric_name=False, every_n_train_steps=steps, save_top_k=-1
    )


def same_weights(one: Recorder, other: Recorder) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def after(events: list[tuple[Any, ...]], step: int) -> list[tuple[Any, ...]]:
    """What happens from the training batch of that step on."""
    return events[next(i for i, event in enumerate(events) if event[0] == "train" and event[3] == step) :]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("killed_at", [5, 8, 10])
def test_killed_in_the_middle_of_an_epoch(tmp_path: Path, workers: int, killed_at: int) -> None:
    data = {"num_workers": workers, "train_transforms": [v2.RandomAdjustSharpness(0.0)]}
    whole = fit(data=data)
    with pytest.raises(RuntimeError, match="killed"):
        fit([every_steps(tmp_path, 3)], stop_at=killed_at, data=data)
    saved = killed_at // 3 * 3
    resumed = fit(resume=tmp_path / f"step{saved}.ckpt", data=data)
    assert resumed.events == after(whole.events, saved), "same images, numbers, steps and validations"
    assert same_weights(resumed, whole)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2}, {"val_check_interval": 0.5}, {"limit_train_batches": 5}]
)
def test_every_checkpoint_can_be_continued(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = fit([every_steps(tmp_path, 2), SaveAtEpochEnds(tmp_path)], **options)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) > 10
    for checkpoint in checkpoints:
        resumed = fit(resume=checkpoint, **options)
        count = len(resumed.events)
        trained = [event for event in resumed.events if event[0] == "train"]
        assert trained == [event for event in whole.events if event[0] == "train"][-len(trained) or len(whole.events) :]
        if "step" not in checkpoint.name:
            assert resumed.events == whole.events[len(whole.events) - count :]
        assert same_weights(resumed, whole)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_checkpoint_of_the_last_batch_goes_on_with_the_next_epoch(tmp_path: Path, workers: int) -> None:
    """Lightning then leaves out that epoch's validation and the hooks between the epochs, but the batches are right."""
    data = {"num_workers": workers}
    whole = fit([every_steps(tmp_path, BATCHES)], data=data)
    resumed = fit(resume=tmp_path / f"step{BATCHES}.ckpt", data=data)
    assert resumed.events == after(whole.events, BATCHES)
    assert same_weights(resumed, whole)


@pytest.mark.filterwarnings("ignore")
def test_the_state_counts_trained_batches(tmp_path: Path) -> None:
    fit([every_steps(tmp_path, 9), SaveAtEpochEnds(tmp_path)], data={"num_workers": 2}, max_epochs=2)

    def state(name: str) -> tuple[int, int]:
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=False)["TinyData"]
        return saved["epoch"], saved["batches"]

    assert state("step9") == (1, 2), "although the workers have loaded more"
    assert state("validation7") == (0, BATCHES)
    assert state("epoch7") == (1, 0)


@pytest.mark.filterwarnings("ignore")
def test_other_batches_cannot_continue_an_epoch_but_may_start_one(tmp_path: Path) -> None:
    fit([every_steps(tmp_path, 3), SaveAtEpochEnds(tmp_path)], max_epochs=1)
    with pytest.raises(UserError, match="cannot be continued: batch_size was 4 and is 5, seed was 3 and is 4"):
        fit(resume=tmp_path / "step3.ckpt", data={"batch_size": 5, "seed": 4})
    assert (
        len(
            [
                e
                for e in fit(resume=tmp_path / "epoch7.ckpt", data={"batch_size": 5}, max_epochs=2).events
                if e[0] == "train"
            ]
        )
        == 5
    )


@pytest.mark.filterwarnings("ignore")
def test_a_second_fit_starts_afresh(tmp_path: Path) -> None:
    fit([every_steps(tmp_path, 3)], max_epochs=1)
    data = TinyData(seed=3)
    events = []
    for checkpoint in (tmp_path / "step3.ckpt", None):
        module = Recorder()
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
        events.append([event for event in module.events if event[0] == "train"])
    assert [len(part) for part in events] == [BATCHES - 3, BATCHES]
    assert events[0] == [(*event[:3], event[2], *event[4:]) for event in events[1][3:]]


RANKS = """
import sys, torch, pytorch_lightning as pl
from pathlib import Path
from tests.datamodules.test_resume import every_steps, fit
folder, resume = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None
options = {"devices": 2, "strategy": "ddp", "max_epochs": 2}
module = fit([every_steps(folder, 2)], resume=resume, data={"batch_size": 2, "num_workers": 1}, **options)
torch.save(module.events, folder / f"{'resumed' if resume else 'whole'}{module.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    for arguments in ([], [str(tmp_path / "step10.ckpt")]):
        command = [sys.executable, str(script), str(tmp_path), *arguments]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
    whole, resumed = ([torch.load(tmp_path / f"{name}{rank}.pt") for rank in (0, 1)] for name in ("whole", "resumed"))
    assert resumed == [after(events, 10) for events in whole]
    alone = fit(max_epochs=2)
    steps, *parts = ([event[4] for event in run if event[0] == "train"] for run in (alone.events, *whole))
    for images, first, second in zip(steps, *parts, strict=True):
        assert sorted(first + second) == sorted(images), "a step sees the same images with one and with two ranks"
    assert [event[4] for event in whole[0] if event[0] == "validate"][:3] == [[0, 2], [4, 6], [8]]
    assert [event[4] for event in whole[1] if event[0] == "validate"][:3] == [[1, 3], [5, 7], [9]]


def test_lightning_does_not_warn_of_a_loader_that_cannot_resume(tmp_path: Path) -> None:
    fit([every_steps(tmp_path, 3)], max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(resume=tmp_path / "step3.ckpt", max_epochs=1)
    assert not [str(warning.message) for warning in caught if "not resumable" in str(warning.message)]
