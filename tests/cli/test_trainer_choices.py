"""What "auto" means to the trainer of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.accelerators import CPUAccelerator, MPSAccelerator

from compresslens.cli.trainer import Trainer

QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("compresslens.cli.trainer.rank_zero_info", lines.append)
    return lines


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer with Apple's GPU alone."""
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("apple")
@pytest.mark.parametrize("chosen", [{}, {"accelerator": "auto"}])
def test_a_gpu_without_float64_is_not_taken_by_itself(tmp_path: Path, said: list[str], chosen: Any) -> None:
    trainer = Trainer(default_root_dir=tmp_path, **chosen, **QUIET)
    assert isinstance(trainer.accelerator, CPUAccelerator)
    assert said == ["accelerator: cpu (auto): Apple's GPU does not compute in float64, which the probes need"]


@pytest.mark.usefixtures("apple")
def test_precision_follows_the_accelerator(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("compresslens.cli.trainer.native_bfloat16", lambda accelerator: asked.append(accelerator))
    trainer = Trainer(default_root_dir=tmp_path, precision="auto", **QUIET)
    assert asked == ["cpu"]
    assert (trainer.precision, said[1:]) == ("32-true", ["precision: 32-true (auto)"])


@pytest.mark.usefixtures("apple")
def test_what_is_named_is_taken(tmp_path: Path, said: list[str]) -> None:
    """By name Apple's GPU can still be had: training without probes may well work."""
    assert isinstance(Trainer(default_root_dir=tmp_path, accelerator="cpu", **QUIET).accelerator, CPUAccelerator)
    taken = []

    class Taken(CPUAccelerator):
        @staticmethod
        def is_available() -> bool:
            taken.append(True)
            return True

    assert isinstance(Trainer(default_root_dir=tmp_path, accelerator=Taken(), **QUIET).accelerator, Taken)
    assert said == []


def test_without_apples_gpu_nothing_is_said(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: False))
    Trainer(default_root_dir=tmp_path, **QUIET)
    assert said == []
