"""Runs through the command line: subcommands, run folders, resuming, what the options do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pytorch_lightning.callbacks import EarlyStopping, LambdaCallback, RichProgressBar, TQDMProgressBar

from callbacks import Accuracy, LastCheckpoint
from compresslens import runs
from compresslens.cli.lightning_cli import effective
from tests.cli.tiny import TINY, write_tiny
from tests.command_line import SHORT, Answer, run, run_folders
from tests.lightning_modules.tiny import curves, untimed


@pytest.fixture(autouse=True)
def tiny(workplace: Path) -> Path:
    """A working folder with `tiny.yaml`."""
    write_tiny(workplace)
    return workplace


def tiny_run(*arguments: str) -> Answer:
    """A short run of `tiny.yaml` that must succeed."""
    subcommand = [arguments[0]] if arguments and not arguments[0].startswith("-") else []
    answer = run(*subcommand, "--config", "./tiny.yaml", *SHORT, *arguments[len(subcommand) :])
    assert answer.status == 0, answer.err
    return answer


def results(name: str) -> dict[str, Any]:
    """`results.json` of the latest run of that name."""
    return json.loads(Path("runs", name, "latest", "results.json").read_text())


# What is shown --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fit", "--help"], "--trainer.max_epochs"),
        (["fit", "--model.help", "lightning_modules.Distillation"], "label_weight"),
        (["--data.help=datamodules.CIFAR10"], "validation_fraction"),
        (["--config", "distill_resnet18.yaml", "--model.help", "lightning_modules.Distillation"], "label_weight"),
        (["--config", "distill_resnet18.yaml", "--print_config"], "class_path: lightning_modules.Distillation"),
    ],
)
def test_what_is_shown_needs_no_teacher_and_no_run_folder(arguments: list[str], text: str) -> None:
    answer = run(*arguments)
    assert answer.status == 0, answer.err
    assert text in answer.out
    assert not Path("runs").exists()


def test_null_reaches_what_is_nested() -> None:
    network = "--model.network.init_args"
    answer = run("--config", "image_folder/baseline_resnet18.yaml", f"{network}.weights=null", "--print_config")
    assert yaml.safe_load(answer.out)["model"]["init_args"]["network"]["init_args"]["weights"] is None
    answer = run("--config", "image_folder/baseline_resnet18.yaml", f"{network}.weights", "null", "--print_config")
    assert yaml.safe_load(answer.out)["model"]["init_args"]["network"]["init_args"]["weights"] is None


def test_what_is_printed_is_a_config() -> None:
    Path("printed.yaml").write_text(run("--config", "./tiny.yaml", "--print_config").out)
    first = yaml.safe_load(Path("printed.yaml").read_text())
    again = yaml.safe_load(run("--config", "./printed.yaml", "--print_config").out)
    assert again == first


# Merging --------------------------------------------------------------------------------------------------------------


def merged(*arguments: str, **content: Any) -> dict[str, Any]:
    """The resolved config of a file that extends `tiny.yaml`."""
    Path("mine.yaml").write_text(yaml.safe_dump({"extends": "tiny.yaml", **content}))
    answer = run("--config", "./mine.yaml", *arguments, "--print_config")
    assert answer.status == 0, answer.err
    return yaml.safe_load(answer.out)


def test_values_merge_key_by_key_and_the_command_line_wins() -> None:
    network = {"init_args": {"network": {"init_args": {"num_classes": 7, "image_size": 20}}}}
    config = merged("--model.network.init_args.image_size=24", "--trainer.max_epochs=5", model=network)
    arguments = config["model"]["init_args"]["network"]["init_args"]
    assert (arguments["architecture"], arguments["num_classes"], arguments["image_size"]) == ("test_resnet", 7, 24)
    assert config["trainer"]["max_epochs"] == 5
    assert config["data"]["init_args"]["image_size"] == 28


def test_another_class_keeps_the_arguments_that_it_has_too() -> None:
    config = merged(data={"class_path": "datamodules.CIFAR10"}, model={"class_path": "lightning_modules.Distillation"})
    assert config["data"]["class_path"] == "datamodules.CIFAR10"
    assert config["data"]["init_args"]["image_size"] == 28
    assert config["model"]["init_args"]["optimizer"]["init_args"]["momentum"] == 0.9


def test_lists_are_replaced_and_a_plus_appends() -> None:
    mine = [{"class_path": "pytorch_lightning.callbacks.DeviceStatsMonitor"}]
    standard = [c["class_path"] for c in merged()["trainer"]["callbacks"]]
    replaced = merged(trainer={"callbacks": mine})["trainer"]["callbacks"]
    appended = merged(trainer={"callbacks+": mine})["trainer"]["callbacks"]
    assert [c["class_path"] for c in replaced] == [mine[0]["class_path"]]
    assert [c["class_path"] for c in appended] == [*standard, mine[0]["class_path"]]


def test_paths_below_runs_follow_runs_dir() -> None:
    weights = {"init_args": {"network": {"init_args": {"weights": "runs/other/latest"}}}}
    config = merged("--runs_dir", "/big/disk", model=weights)
    assert config["model"]["init_args"]["network"]["init_args"]["weights"] == "/big/disk/other/latest"


def test_an_added_callback_replaces_the_one_it_cannot_stand_beside() -> None:
    rich, tqdm, first, second = RichProgressBar(), TQDMProgressBar(), LastCheckpoint(), LastCheckpoint(every_n_steps=7)
    plain = [Accuracy(), LambdaCallback(), LambdaCallback()]
    stops = [EarlyStopping("a"), EarlyStopping("b")]
    assert effective([rich, first, *plain, *stops, second, tqdm], True) == [tqdm, second, *plain, *stops]
    assert effective([rich, first], False) == [first]


# Run folders ----------------------------------------------------------------------------------------------------------


def test_evaluations_use_the_latest_run_and_get_folders_of_their_own() -> None:
    tiny_run("--runs_dir", "runs")
    (trained,) = run_folders()
    answer = tiny_run("test")
    assert "evaluating runs/tiny/latest/checkpoints/best.ckpt" in answer.out
    tiny_run("validate")
    tiny_run("predict", "--trainer.limit_predict_batches=1")
    assert [name.split("/")[0] for name in run_folders()] == ["tiny", "tiny_predict", "tiny_test", "tiny_validate"]
    assert (Path("runs/tiny/latest").resolve().name) == trained.split("/")[1]
    assert results("tiny_test")["metrics"]["accuracy/top1"] == results("tiny")["metrics"]["accuracy/top1"]
    assert (results("tiny_test")["split"], results("tiny_validate")["split"]) == ("test", "val")
    assert results("tiny_validate")["name"] == "tiny_validate"


def test_without_a_run_the_network_is_evaluated_as_configured() -> None:
    answer = tiny_run("test", "--name", "fresh")
    assert "no finished run of fresh in runs: evaluating the network as configured" in answer.out
    assert [name.split("/")[0] for name in run_folders()] == ["fresh_test"]


def test_a_run_leaves_nothing_behind_in_the_process() -> None:
    before = dict(os.environ)
    tiny_run()
    (folder,) = run_folders()
    assert runs.RUN_DIRECTORY_VARIABLE not in os.environ
    assert {key: value for key, value in os.environ.items() if key in before} == before
    runs.lock(Path("runs", folder))  # and other processes can have it
    runs.release(Path("runs", folder))


def test_the_home_folder_is_not_in_the_config_of_a_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny))
    tiny_run(f"--data.root={tiny}/data")
    text = Path("runs/tiny/latest/config.yaml").read_text()
    assert str(tiny) not in text
    assert yaml.safe_load(text)["data"]["init_args"]["root"] == "~/data"


def test_wandb_is_offline_unless_asked_otherwise(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    answer = tiny_run("--trainer.enable_progress_bar=true")
    assert "Epoch 0/0" in answer.out
    (folder,) = Path("runs/tiny/latest/wandb").glob("offline-run-*")
    assert list(folder.glob("run-*.wandb"))


def test_a_run_without_training_data_leaves_no_folder_though_wandb_had_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    assert "nowhere" in run("--config", "./tiny.yaml", "--data.root=nowhere").error
    assert run_folders() == []


# Interrupting and resuming --------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """A run that was stopped with Ctrl+C in its fourth step, just before the checkpoint that follows the third."""
    added = [
        {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_steps": 1}},
        {"class_path": "tests.cli.tiny.CtrlC", "init_args": {"batch": 3}},
    ]
    trainer = {"callbacks+": added, "max_epochs": 2, "limit_train_batches": 5, "log_every_n_steps": 1}
    evaluation = {"limit_val_batches": 1, "limit_test_batches": 1, "enable_progress_bar": False}
    data = {"init_args": {**TINY["data"]["init_args"], "batch_size": 4, "num_workers": 0}}
    content = {**TINY, "trainer": {**trainer, **evaluation}, "data": data}
    Path("tiny.yaml").write_text(yaml.safe_dump(content))
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("INTERRUPT", "1")
    answer = run("--config", "./tiny.yaml", "--name", "stopped")
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on
    monkeypatch.delenv("INTERRUPT")
    return answer


def test_ctrl_c_ends_in_order(interrupted: Answer) -> None:
    assert interrupted.status == 130
    assert interrupted.err.splitlines()[-1] == "interrupted; `--resume` continues from the last checkpoint"
    assert not Path("runs/stopped/latest").exists()
    (folder,) = run_folders()
    assert torch.load(f"runs/{folder}/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_a_resumed_run_ends_like_one_that_never_stopped(interrupted: Answer) -> None:
    (folder,) = run_folders()
    resumed = run("--config", "./tiny.yaml", "--name", "stopped", "--resume")
    assert resumed.status == 0, resumed.err
    assert f"resuming runs/{folder}" in resumed.out
    assert run("--config", "./tiny.yaml", "--name", "whole").status == 0
    ours, whole = (Path("runs", name, "latest") for name in ("stopped", "whole"))
    assert ours.resolve() == Path("runs", folder).resolve()
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (ours, whole)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    assert curves(ours) == curves(whole)
    assert untimed(results("stopped")["metrics"]) == untimed(results("whole")["metrics"])
    error = run("--config", "./tiny.yaml", "--name", "stopped", "--resume").error
    assert error == "nothing to resume: no unfinished run in runs/stopped"


def test_a_run_that_is_going_on_is_not_resumed(interrupted: Answer) -> None:
    (folder,) = run_folders()
    runs.lock(Path("runs", folder))
    assert "in use by another process" in run("--config", "./tiny.yaml", "--name", "stopped", "--resume").error
    runs.release(Path("runs", folder))


# Moving averages ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_moving_average_reports_is_what_its_checkpoint_holds() -> None:
    average = [{"class_path": "pytorch_lightning.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}}]
    longer = [f"--trainer.callbacks+={json.dumps(average)}", "--trainer.limit_train_batches=12"]
    tiny_run("--name", "ema", *longer)
    checkpoint = torch.load("runs/ema/latest/checkpoints/best.ckpt", weights_only=True)
    averaged, current = (checkpoint[key]["model.backbone.fc.weight"] for key in ("state_dict", "current_model_state"))
    assert not torch.allclose(averaged, current)
    tiny_run("test", "--name", "ema", *longer)
    (fitted,), (tested,) = (
        [pd.read_parquet(Path("runs", name, "latest", "samples.parquet"))] for name in ("ema", "ema_test")
    )
    np.testing.assert_allclose(fitted["margin"], tested["margin"], atol=1e-5)


# typing takes the order within a union for no matter, and caches it: what Lightning means by
# Optional[Union[int, float]] depends on who has written it before.
IMPORTED_BEFORE = """
import sys, typing
class Before:
    def find_spec(self, name, *_):
        if name == "pytorch_lightning.trainer.trainer":
            for forget in typing._cleanups:
                forget()
            typing.Optional[typing.Union[float, int]]
sys.meta_path.insert(0, Before())
from compresslens.cli import main
sys.exit(main(["--config", "./tiny.yaml", "--trainer.limit_test_batches=1", "--print_config"]))
"""


def test_one_batch_is_not_all_batches_whatever_was_imported_before() -> None:
    printed = subprocess.run([sys.executable, "-c", IMPORTED_BEFORE], capture_output=True, text=True, check=True).stdout
    limit = yaml.safe_load(printed)["trainer"]["limit_test_batches"]
    assert limit == 1
    assert isinstance(limit, int)
