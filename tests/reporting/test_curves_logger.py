import csv
import errno
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from compresslens.reporting.curves_logger import CurvesLogger
from compresslens.runs import RUN_DIRECTORY_VARIABLE


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_in_the_file_at_once_and_exact(tmp_path: Path) -> None:
    logger = CurvesLogger(str(tmp_path / "run"))
    logger.log_metrics({"train/loss": 0.1, "epoch": 0, "odd, name": torch.tensor(2)}, 4)
    logger.log_metrics({"val/loss": float("nan"), "picture": object()})
    text = (tmp_path / "run" / "metrics.csv").read_text()
    assert text == 'step,epoch,name,value\n4,0,train/loss,0.1\n4,0,"odd, name",2.0\n,,val/loss,nan\n'
    assert logger.rows == 3
    assert CurvesLogger(str(tmp_path / "run")).rows == 3


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_values_survive_exactly(value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    CurvesLogger(str(folder)).log_metrics({"x": value}, 0)
    assert float(read(folder)[0]["value"]) == value


def test_the_folder_is_that_of_the_current_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CurvesLogger()
    monkeypatch.setenv(RUN_DIRECTORY_VARIABLE, str(tmp_path))
    logger.log_metrics({"x": 1.0}, 0)
    assert logger.save_dir == str(tmp_path)
    assert len(read(tmp_path)) == 1


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    logger = CurvesLogger(str(tmp_path / "run"))
    logger.log_metrics({"x": 1.0}, 0)
    logger.rewind(0)
    logger.finalize("success")
    assert logger.state_dict() == {"rows": 0}
    assert not (tmp_path / "run").exists()


def test_a_removed_folder_gives_one_warning_and_costs_no_rows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    logger = CurvesLogger(str(folder))
    logger.log_metrics({"x": 1.0}, 0)
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match=r"cannot write metrics.csv \(No such file or directory\)"):
        logger.log_metrics({"x": 2.0}, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger.log_metrics({"x": 3.0}, 2)
        logger.finalize("failed")
        folder.mkdir()
        logger.log_metrics({"x": 4.0}, 3)
    assert [row["value"] for row in read(folder)] == ["2.0", "3.0", "4.0"]


def test_a_full_disk_leaves_no_half_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CurvesLogger(str(tmp_path))
    logger.log_metrics({"x": 1.0}, 0)
    original = Path.open

    class FullDisk:
        def __init__(self, path: Path) -> None:
            self.file = original(path, "ab")

        def __enter__(self) -> "FullDisk":
            return self

        def __exit__(self, *args: Any) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, content: bytes) -> None:
            self.file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: FullDisk(self))
    with pytest.warns(UserWarning, match="No space left"):
        logger.log_metrics({"x": 2.0}, 1)
    monkeypatch.undo()
    assert logger.rows == 2
    logger.log_metrics({"x": 3.0}, 2)
    assert [row["value"] for row in read(tmp_path)] == ["1.0", "2.0", "3.0"]
    assert logger.rows == 3


def test_half_a_row_of_a_killed_run_is_overwritten(tmp_path: Path) -> None:
    CurvesLogger(str(tmp_path)).log_metrics({"x": 1.0}, 0)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,0,x,0.33")
    logger = CurvesLogger(str(tmp_path))
    assert logger.rows == 1
    logger.log_metrics({"x": 2.0}, 1)
    assert [row["value"] for row in read(tmp_path)] == ["1.0", "2.0"]


def test_rewind_to_more_rows_than_there_are_warns(tmp_path: Path) -> None:
    logger = CurvesLogger(str(tmp_path))
    logger.log_metrics({"x": 1.0}, 0)
    with pytest.warns(UserWarning, match="has 1 rows, but the checkpoint was saved after 5"):
        logger.rewind(5)
    assert logger.rows == 1


def test_rewind_of_a_run_without_checkpoint_starts_again(tmp_path: Path) -> None:
    logger = CurvesLogger(str(tmp_path))
    logger.rewind(0)
    logger.log_metrics({"x": 1.0}, 0)
    CurvesLogger(str(tmp_path)).rewind(0)
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,name,value\n"


# A run that is interrupted and continued ------------------------------------------------------------------------------


class Interruption(Exception):
    pass


class Module(pl.LightningModule):
    """Logs something in every place where a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.weight**2
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.weight.detach() ** 2)

    def on_validation_epoch_end(self) -> None:
        self.log("val/weight", self.weight.detach())

    def on_train_epoch_end(self) -> None:
        self.log("train/weight", self.weight.detach())


class Rewind(pl.Callback):
    """How a run uses the logger."""

    def __init__(self, logger: CurvesLogger, stop_at: tuple[str, int] | None = None) -> None:
        self.logger = logger
        self.stop_at = stop_at
        self.rows = 0

    def state_dict(self) -> dict[str, int]:
        return self.logger.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.rows = state_dict["rows"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.logger.rewind(self.rows, trainer.global_step)

    def _stop(self, hook: str, trainer: pl.Trainer) -> None:
        if self.stop_at == (hook, trainer.global_step):
            raise Interruption

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._stop("batch start", trainer)

    def on_validation_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._stop("validation start", trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._stop("epoch start", trainer)


def fit(
    folder: Path,
    checkpoints: dict[str, Any],
    stop_at: tuple[str, int] | None = None,
    resume: bool = False,
    **options: Any,
) -> None:
    """Three epochs of six steps."""
    logger = CurvesLogger(str(folder))
    trainer = pl.Trainer(
        max_epochs=3,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[Rewind(logger, stop_at), ModelCheckpoint(folder / "checkpoints", save_last=True, **checkpoints)],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loader: DataLoader[Any] = DataLoader(TensorDataset(torch.zeros(6, 1)))
    path = folder / "checkpoints" / "last.ckpt"
    trainer.fit(Module(), loader, loader, ckpt_path=str(path) if resume else None, weights_only=True)


MID_EPOCH = {"every_n_train_steps": 4}  # saved before the metrics of the step are logged
AFTER_VALIDATION = {"save_on_train_epoch_end": False}
EPOCH_END = {"save_on_train_epoch_end": True}  # saved before the metrics of the epoch are logged


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("checkpoints", "stop_at", "options"),
    [
        (MID_EPOCH, ("batch start", 4), {}),
        (MID_EPOCH, ("batch start", 5), {}),
        (MID_EPOCH, ("validation start", 6), {}),
        (MID_EPOCH, ("epoch start", 6), {}),
        (MID_EPOCH, ("batch start", 7), {}),
        (MID_EPOCH, ("batch start", 15), {}),
        (MID_EPOCH, ("batch start", 7), {"val_check_interval": 2}),
        (MID_EPOCH, ("batch start", 4), {"val_check_interval": 2}),
        (AFTER_VALIDATION, ("epoch start", 6), {}),
        (AFTER_VALIDATION, ("batch start", 8), {}),
        (AFTER_VALIDATION, ("validation start", 18), {}),
        (EPOCH_END, ("epoch start", 6), {}),
        (EPOCH_END, ("batch start", 9), {}),
        (EPOCH_END, ("batch start", 12), {"check_val_every_n_epoch": 2}),
    ],
)
def test_an_interrupted_run_ends_with_the_same_file(
    tmp_path: Path, checkpoints: dict[str, Any], stop_at: tuple[str, int], options: dict[str, Any]
) -> None:
    fit(tmp_path / "whole", checkpoints, **options)
    with pytest.raises(Interruption):
        fit(tmp_path / "parts", checkpoints, stop_at, **options)
    fit(tmp_path / "parts", checkpoints, resume=True, **options)
    whole, parts = (tmp_path / name / "metrics.csv" for name in ("whole", "parts"))
    assert parts.read_text() == whole.read_text()
    assert len(read(tmp_path / "whole")) >= 3 * 6 + 3
