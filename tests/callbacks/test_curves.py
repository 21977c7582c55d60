from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import Logger

from callbacks import Curves, LastCheckpoint
from compresslens.reporting import CurvesLogger
from lightning_modules import ImageClassifier
from tests.lightning_modules.tiny import NoiseData, TinyNetwork, trainer

PNG = b"\x89PNG\r\n\x1a\n"


class Pictures(Logger):
    """A logger that takes pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple[str, list[str]]] = []

    name, version = "", ""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_image(self, key: str, images: list[str]) -> None:
        self.pictures.append((key, images))


def fit(folder: Path, loggers: list[Logger], **options: Any) -> None:
    loop = trainer(folder, [Curves(), LastCheckpoint(4)], **{"max_epochs": 1, "logger": loggers, **options})
    loop.fit(ImageClassifier(TinyNetwork()), datamodule=NoiseData())


def test_the_figure_is_drawn_and_handed_on(tmp_path: Path) -> None:
    pictures = Pictures()
    fit(tmp_path, [CurvesLogger(str(tmp_path)), pictures], log_every_n_steps=2)
    picture = tmp_path / "figures" / "training_curves.png"
    assert picture.read_bytes().startswith(PNG)
    assert pictures.pictures == [("training_curves", [str(picture)])]


def test_nothing_to_draw_from(tmp_path: Path) -> None:
    pictures = Pictures()
    fit(tmp_path, [pictures])
    assert not (tmp_path / "figures").exists()
    assert pictures.pictures == []
    fit(tmp_path, [CurvesLogger(str(tmp_path))], fast_dev_run=True)
    assert not (tmp_path / "figures").exists()


def test_a_figure_that_cannot_be_drawn_gives_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("callbacks.curves.draw_curves", fail)
    with pytest.warns(UserWarning, match="no figure of the training curves: No space left"):
        fit(tmp_path, [CurvesLogger(str(tmp_path))])


def test_a_run_killed_before_its_first_checkpoint_starts_its_csv_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,name,value\n0,0,train/loss,9.0\n1,0,train/loss,8.0\n")
    fit(tmp_path, [CurvesLogger(str(tmp_path))], log_every_n_steps=1)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    steps = [int(row[0]) for row in rows if row[2] == "train/loss"]
    assert steps == list(range(9))
    assert [row[3] for row in rows[:1]] != ["9.0"]


def test_a_test_of_a_checkpoint_drops_nothing(tmp_path: Path) -> None:
    fit(tmp_path, [CurvesLogger(str(tmp_path))], log_every_n_steps=1)
    before = (tmp_path / "metrics.csv").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = trainer(tmp_path, [Curves(), LastCheckpoint()], logger=CurvesLogger(str(tmp_path)))
        last = tmp_path / "checkpoints" / "last.ckpt"
        loop.test(
            ImageClassifier(TinyNetwork()), datamodule=NoiseData(), ckpt_path=last, weights_only=True, verbose=False
        )
    after = (tmp_path / "metrics.csv").read_text()
    assert after.startswith(before)
    assert "test/top1" in after[len(before) :]


def test_the_state_counts_rows(tmp_path: Path) -> None:
    curves, logger = Curves(), CurvesLogger(str(tmp_path))
    assert curves.state_dict() == {"rows": []}, "not attached yet"
    loop: Any = type("Trainer", (), {"loggers": [Pictures(), logger]})()
    curves.setup(loop, pl.LightningModule(), "fit")
    logger.log_metrics({"a": 1.0, "b": 2.0}, 0)
    assert curves.state_dict() == {"rows": [2]}
