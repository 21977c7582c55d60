"""What a config requires is trained first, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from compresslens import runs
from compresslens.cli.configs import CONFIG_DIRECTORY
from compresslens.cli.requirements import ENTRY_POINT, data_overrides, train_missing, undistributed_environment
from tests.command_line import SHORT, Answer, run, run_folders, run_process
from tests.real_formats import write_fashion_mnist

TEACHER = CONFIG_DIRECTORY / "cifar10" / "teacher_resnet34.yaml"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run; all of them succeed."""
    called: list[list[str]] = []

    def note(command: list[str], **options: Any) -> SimpleNamespace:
        called.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", note)
    return called


def finished_run(root: Path, name: str) -> Path:
    """A run as `train_missing` looks for it."""
    folder = runs.create_run(root, name)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").touch()
    (folder / "config.yaml").touch()
    runs.finish(folder)
    return folder


def test_a_missing_teacher_is_trained_under_its_own_name(commands: list[list[str]], tmp_path: Path) -> None:
    finished_run(tmp_path, "teacher_resnet34")  # of other data
    assert train_missing([TEACHER], tmp_path, ["--data.root=x", "--trainer.max_epochs=1"]) == 0
    options = ["--config", str(TEACHER), "--runs_dir", str(tmp_path), "--data.root=x"]
    assert commands == [[sys.executable, str(ENTRY_POINT), "fit", *options]]
    assert ENTRY_POINT.is_file()


def test_a_finished_teacher_is_not_trained_again(commands: list[list[str]], tmp_path: Path) -> None:
    finished_run(tmp_path, "cifar10_teacher_resnet34")
    assert train_missing([TEACHER], tmp_path, []) == 0
    assert commands == []


def test_an_unfinished_teacher_is_resumed_as_it_was_configured(commands: list[list[str]], tmp_path: Path) -> None:
    (runs.create_run(tmp_path, "cifar10_teacher_resnet34") / "config.yaml").touch()
    train_missing([TEACHER], tmp_path, ["--data.root=x"])
    assert commands[0][-1] == "--resume"
    assert "--data.root=x" not in commands[0]


def test_a_failed_training_ends_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = iter([2, 0])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=next(statuses)))
    assert train_missing([TEACHER, TEACHER], tmp_path, []) == 2
    assert list(statuses) == [0]
    assert capsys.readouterr().err.strip().endswith("teacher_resnet34.yaml was not trained: exit status 2")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-9))
    assert train_missing([TEACHER], tmp_path, []) == 1


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ([], []),
        (["--data.root=a", "--trainer.max_epochs", "3", "--data.batch_size", "8"], [0, 3, 4]),
        (["--data", "datamodules.CIFAR10", "--data.train_transforms+=[1]", "--database=3"], [0, 1, 2]),
        (["--data=datamodules.CIFAR10"], [0]),
        (["--model.network.init_args.num_classes=3", "--model.teacher.init_args.num_classes=3"], [0]),
        (["--model.init_args.network.init_args.num_classes", "3", "--model.network.init_args.architecture=x"], [0, 1]),
        (["--seed_everything=1", "--data.seed=2"], [1]),
    ],
)
def test_only_options_about_the_data_are_passed_on(arguments: list[str], kept: list[int]) -> None:
    assert data_overrides(arguments) == [arguments[index] for index in kept]


def test_the_required_training_is_one_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1", "SLURM_PROCID": "1"}
    for name, value in {**theirs, "TORCHELASTIC_RUN_ID": "x", runs.RUN_DIRECTORY_VARIABLE: "y", "KEPT": "z"}.items():
        monkeypatch.setenv(name, value)
    environment = undistributed_environment()
    assert environment["KEPT"] == "z"
    assert not {*theirs, "TORCHELASTIC_RUN_ID", runs.RUN_DIRECTORY_VARIABLE} & set(environment)


# End to end -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def experiments(workplace: Path) -> Path:
    """`student.yaml`, which requires `teacher.yaml`, both tiny, on data that their configs do not know the place of."""
    write_fashion_mnist(workplace / "elsewhere")
    network = {"architecture": "test_resnet", "num_classes": 10, "image_size": 28, "stem": "imagenet"}
    teacher = {
        "extends": ["base/default.yaml", "base/fashion_mnist.yaml"],
        "trainer": {
            **{"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1},
            "enable_progress_bar": False,
        },
        "data": {"init_args": {"num_workers": 0, "batch_size": 4, "image_size": 28, "train_transforms": None}},
        "model": {"init_args": {"network": {"init_args": network}}},
    }
    student = {
        "extends": "teacher.yaml",
        "requires": "teacher.yaml",
        "model": {
            "class_path": "lightning_modules.Distillation",
            "init_args": {
                "teacher": {
                    "class_path": "compresslens.networks.create_network",
                    "init_args": {**network, "weights": "runs/teacher/latest", "replace_head": False},
                },
                "losses": [{"class_path": "compresslens.distillation.LogitKDLoss"}],
            },
        },
    }
    for name, content in {"teacher": teacher, "student": student}.items():
        (workplace / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return workplace


def teacher_and_student(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Their results."""
    teacher, student = (
        json.loads((root / name / "latest/results.json").read_text()) for name in ("teacher", "student")
    )
    return teacher, student


@pytest.mark.slow
def test_the_teacher_is_trained_first_on_the_same_data(experiments: Path) -> None:
    arguments = ["--config", "./student.yaml", "--runs_dir", "here", "--data.root=elsewhere", "--trainer.max_epochs=2"]
    answer = run_process(*arguments, cwd=experiments)
    assert answer.status == 0, answer.err
    assert "teacher.yaml is required and has no finished run: training it first" in answer.out
    teacher, student = teacher_and_student(experiments / "here")
    for results, epochs in ((teacher, 1), (student, 2)):
        assert results["config"]["data"]["init_args"]["root"] == "elsewhere"
        assert results["config"]["trainer"]["max_epochs"] == epochs
    assert student["metrics"]["accuracy/top1"]["reference"] == teacher["metrics"]["accuracy/top1"]["value"]
    assert student["config"]["model"]["init_args"]["teacher"]["init_args"]["weights"] == "here/teacher/latest"
    # A second student finds the teacher; within this process, since nothing else need be started.
    again = run(*arguments, "--name", "second")
    assert again.status == 0, again.err
    assert "is required" not in again.out
    assert sorted(name.split("/")[0] for name in run_folders(Path("here"))) == ["second", "student", "teacher"]


def test_a_teacher_that_fails_is_the_only_error(experiments: Path) -> None:
    answer: Answer = run_process("--config", "./student.yaml", "--data.root=nowhere", *SHORT[:1], cwd=experiments)
    assert "nowhere" in answer.error
    assert "teacher.yaml was not trained: exit status 2" in answer.err
    assert run_folders(experiments / "runs") == []
