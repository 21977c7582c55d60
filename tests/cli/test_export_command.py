"""`train.py export`: from a config, or a checkpoint, to files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compresslens.export import load_recipe
from tests.cli.tiny import write_tiny
from tests.command_line import SHORT, Answer, run, run_folders

NAMES = ["model.onnx", "model.pt2", "model.safetensors", "recipe.json"]


@pytest.fixture(autouse=True)
def tiny(workplace: Path) -> Path:
    """A working folder with `tiny.yaml`."""
    write_tiny(workplace)
    return workplace


def export(*arguments: str) -> Answer:
    """An export of `tiny.yaml` that must succeed."""
    answer = run("export", "--config", "./tiny.yaml", *SHORT, *arguments)
    assert answer.status == 0, answer.err
    return answer


def test_without_a_run_the_network_is_exported_as_configured() -> None:
    answer = export()
    assert "no finished run of tiny in runs" in answer.out
    (folder,) = run_folders()
    assert folder.startswith("tiny_export/")
    assert sorted(path.name for path in Path("runs", folder, "model").iterdir()) == NAMES
    lines = [line for line in answer.out.splitlines() if line.startswith(f"runs/{folder}/model/")]
    assert [line.split(":")[0].rsplit("/")[-1] for line in lines] == NAMES[:3]
    assert all("bytes" in line and "predictions alike" in line for line in lines)
    assert not Path("runs", folder, "results.json").exists(), "an export measures nothing"
    assert not Path("runs", folder, "metrics.csv").exists()
    assert Path("runs/tiny_export/latest").exists()


def test_the_best_checkpoint_of_the_latest_run() -> None:
    trained = run("--config", "./tiny.yaml", *SHORT, '--trainer.callbacks=[{"class_path": "callbacks.BestCheckpoint"}]')
    assert trained.status == 0, trained.err
    assert "exporting runs/tiny/latest/checkpoints/best.ckpt" in export().out
    state = torch.load("runs/tiny/latest/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    network = load_recipe(Path("runs/tiny_export/latest/model"))
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[f"model.{name}"]), name
    answer = export("--ckpt_path=runs/tiny/latest/checkpoints/best.ckpt", "--name", "again")
    assert "no finished run" not in answer.out
    recipe = json.loads(Path("runs/again_export/latest/model/recipe.json").read_text())
    assert recipe["recipe"]["architecture"] == "test_resnet"
    assert len(recipe["class_names"]) == 10


def test_formats_are_those_of_the_config() -> None:
    export('--trainer.callbacks=[{"class_path": "callbacks.Export", "init_args": {"formats": ["onnx"]}}]')
    assert [path.name for path in Path("runs/tiny_export/latest/model").iterdir()] == ["model.onnx"]


def test_a_checkpoint_that_is_not_there() -> None:
    answer = run("export", "--config", "./tiny.yaml", *SHORT, "--ckpt_path=nowhere.ckpt")
    assert "nowhere.ckpt" in answer.error
    assert run_folders() == []


def test_the_help_of_the_subcommand() -> None:
    assert run("export", "--help").status == 0
    assert "--ckpt_path" in run("export", "--help").out
