"""A run that is killed and continued ends with the bits of a run that never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from callbacks import checkpoint
from compresslens.cli.requirements import ENTRY_POINT, undistributed_environment
from tests.lightning_modules import recipes
from tests.lightning_modules.tiny import Kill, differences, in_process, kill_this_process, whole_run

KINDS = [
    *(recipes.classifier, recipes.cached, recipes.hints, recipes.averaged, recipes.averaged_hints),
    *(recipes.accumulated, recipes.often_validated, recipes.validated_by_steps, recipes.fixed_steps),
    *(recipes.plateau, recipes.stopped_early, recipes.workers),
    *(recipes.factorized, recipes.rounded, recipes.learned_steps),
    *(recipes.pruned, recipes.pruned_to_a_pattern, recipes.pruned_at_once, recipes.narrowed, recipes.narrowed_at_once),
]
# The trainings have 9 batches in each of 3 epochs and save after every 4th step and between the epochs.
BEFORE_ANY_CHECKPOINT = ("on_train_batch_end", 2)
MID_EPOCH = ("on_train_batch_end", 14)
BETWEEN_EPOCHS = ("on_train_batch_end", 10)
IN_VALIDATION = ("on_validation_batch_end", 2)
AFTER_VALIDATION = ("on_validation_end", 1)
AFTER_FIT = ("on_fit_end", 1)
IN_TEST = ("on_test_batch_end", 2)
EVERYWHERE = [BEFORE_ANY_CHECKPOINT, MID_EPOCH, BETWEEN_EPOCHS, IN_VALIDATION, AFTER_VALIDATION, AFTER_FIT, IN_TEST]

Place = tuple[str, int]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[recipes.Recipe], Path]:
    """The folder of a run that nothing happened to, one of each kind."""
    folders: dict[recipes.Recipe, Path] = {}

    def run(recipe: recipes.Recipe) -> Path:
        if recipe not in folders:
            folders[recipe] = tmp_path_factory.mktemp(recipe.__name__)
            assert in_process(whole_run, folders[recipe], recipe) == 0
        return folders[recipe]

    return run


def name(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(
    ("recipe", "place"),
    [
        *[(recipes.classifier, place) for place in EVERYWHERE],
        (recipes.cached, MID_EPOCH),
        (recipes.hints, BETWEEN_EPOCHS),
        (recipes.averaged, IN_VALIDATION),
        (recipes.averaged_hints, MID_EPOCH),
        (recipes.accumulated, MID_EPOCH),
        (recipes.often_validated, AFTER_VALIDATION),
        (recipes.validated_by_steps, MID_EPOCH),
        (recipes.fixed_steps, BETWEEN_EPOCHS),
        (recipes.plateau, BETWEEN_EPOCHS),
        (recipes.stopped_early, AFTER_FIT),
        (recipes.workers, MID_EPOCH),
        (recipes.never_validated, AFTER_FIT),
        (recipes.factorized, MID_EPOCH),
        pytest.param(recipes.rounded, MID_EPOCH, marks=pytest.mark.slow),
        (recipes.learned_steps, MID_EPOCH),
        (recipes.pruned, MID_EPOCH),
        (recipes.pruned, BETWEEN_EPOCHS),
        (recipes.pruned_to_a_pattern, BETWEEN_EPOCHS),
        (recipes.pruned_at_once, MID_EPOCH),
        (recipes.narrowed, MID_EPOCH),
        (recipes.narrowed, BETWEEN_EPOCHS),
        (recipes.narrowed_at_once, MID_EPOCH),
    ],
    ids=lambda value: name(value) or "{}-{}".format(*value),
)
def test_killed_anywhere(
    uninterrupted: Callable[[recipes.Recipe], Path], tmp_path: Path, recipe: recipes.Recipe, place: Place
) -> None:
    assert in_process(whole_run, tmp_path, recipe, [Kill(*place)]) == -signal.SIGKILL
    assert in_process(whole_run, tmp_path, recipe) == 0
    assert differences(uninterrupted(recipe), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", EVERYWHERE, ids=lambda place: "{}-{}".format(*place))
@pytest.mark.parametrize("recipe", KINDS, ids=name)
def test_every_kind_killed_everywhere(
    uninterrupted: Callable[[recipes.Recipe], Path], tmp_path: Path, recipe: recipes.Recipe, place: Place
) -> None:
    # Last among the callbacks: what the others do at that place has been done.
    assert in_process(whole_run, tmp_path, recipe, [], [Kill(*place)]) == -signal.SIGKILL
    assert in_process(whole_run, tmp_path, recipe) == 0
    assert differences(uninterrupted(recipe), tmp_path) == []


def test_killed_twice(uninterrupted: Callable[[recipes.Recipe], Path], tmp_path: Path) -> None:
    for place in (("on_train_batch_end", 6), ("on_train_batch_end", 4), ("on_train_batch_end", 15)):
        assert in_process(whole_run, tmp_path, recipes.classifier, [Kill(*place)]) == -signal.SIGKILL
    assert in_process(whole_run, tmp_path, recipes.classifier) == 0
    assert differences(uninterrupted(recipes.classifier), tmp_path) == []


def killed_before_the_checkpoint_is_in_place(folder: Path, recipe: recipes.Recipe, number: int) -> None:
    """Dies when it would put a complete new checkpoint in the place of the old one."""
    replace, calls = os.replace, []

    def replace_or_die(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == number:
            kill_this_process()
        replace(*paths)

    checkpoint.os = type("os", (), {"replace": staticmethod(replace_or_die)})  # type: ignore[assignment]
    whole_run(folder, recipe)


@pytest.mark.parametrize("number", [3, 4, 5], ids=["best", "last after best", "mid-epoch"])
def test_killed_while_saving(uninterrupted: Callable[[recipes.Recipe], Path], tmp_path: Path, number: int) -> None:
    status = in_process(killed_before_the_checkpoint_is_in_place, tmp_path, recipes.classifier, number)
    assert status == -signal.SIGKILL
    assert list(tmp_path.glob("checkpoints/*.partial"))
    assert in_process(whole_run, tmp_path, recipes.classifier) == 0
    assert differences(uninterrupted(recipes.classifier), tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


# The same with what a user types -------------------------------------------------------------------------------------

CONFIG = """
extends: base/default.yaml
trainer:
  max_epochs: 3
  log_every_n_steps: 2
  enable_progress_bar: false
  callbacks+:
    - class_path: callbacks.LastCheckpoint
      init_args: {every_n_steps: 4}
    - class_path: tests.lightning_modules.tiny.Slow
data:
  class_path: tests.lightning_modules.tiny.NoiseData
model:
  class_path: lightning_modules.ImageClassifier
  init_args:
    network: {class_path: tests.lightning_modules.tiny.TinyNetwork}
    optimizer:
      class_path: torch.optim.SGD
      init_args: {lr: 0.1, momentum: 0.9}
    scheduler:
      class_path: torch.optim.lr_scheduler.OneCycleLR
      init_args: {max_lr: 0.1}
"""
CLASSIFIER = """
extends: tiny.yaml
data:
  init_args:
    train_transforms:
      - class_path: torchvision.transforms.v2.RandomCrop
        init_args: {size: 12, padding: 2}
      - class_path: torchvision.transforms.v2.RandomHorizontalFlip
model:
  init_args: {mixup_alpha: 0.3, label_smoothing: 0.1}
trainer:
  callbacks+:
    - class_path: pytorch_lightning.callbacks.EMAWeightAveraging
      init_args: {decay: 0.8}
"""
DISTILLATION = """
extends: tiny.yaml
model:
  class_path: lightning_modules.Distillation
  init_args:
    teacher:
      class_path: tests.lightning_modules.tiny.TinyNetwork
      init_args: {width: 6, seed: 1}
    losses:
      - class_path: compresslens.distillation.LogitKDLoss
"""


def command(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """`train.py fit` on its own, as a user starts it."""
    environment = {
        **undistributed_environment(),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ENTRY_POINT.parent),
        "WANDB_DATA_DIR": str(folder),
    }
    return subprocess.Popen(
        [sys.executable, str(ENTRY_POINT), "--config", "./experiment.yaml", *arguments],
        cwd=folder,
        env=environment,
        stdout=(folder / "output.txt").open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for_step(process: subprocess.Popen[bytes], folder: Path, step: int) -> None:
    """Until that step's loss stands in `metrics.csv`."""
    for _ in range(6000):
        assert process.poll() is None, (folder / "output.txt").read_text()
        rows = [
            line.split(",") for path in folder.glob("runs/*/*/metrics.csv") for line in path.read_text().splitlines()
        ]
        if any(row[2] == "train/loss" and int(row[0]) >= step for row in rows[1:] if len(row) == 4):
            return
        time.sleep(0.02)
    raise AssertionError((folder / "output.txt").read_text())


@pytest.mark.parametrize(
    ("config", "step", "devices"),
    [
        pytest.param(CLASSIFIER, 13, "1", id="classifier"),
        pytest.param(CLASSIFIER, 1, "1", id="before-any-checkpoint", marks=pytest.mark.slow),
        pytest.param(DISTILLATION, 13, "1", id="distillation", marks=pytest.mark.slow),
        pytest.param(DISTILLATION, 13, "2", id="two-devices", marks=pytest.mark.slow),
    ],
)
def test_kill_9(tmp_path: Path, config: str, step: int, devices: str) -> None:
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
        (folder / "tiny.yaml").write_text(CONFIG)
        (folder / "experiment.yaml").write_text(config)
    parallel = ["--trainer.accelerator=cpu", "--trainer.strategy=ddp"] if devices == "2" else []
    options = [f"--trainer.devices={devices}", f"--data.batch_size={8 // int(devices)}", *parallel]
    whole, killed = (command(folder, *options) for folder in folders)
    wait_for_step(killed, folders[1], step)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not list(folders[1].glob("runs/*/*/finished"))
    resumed = command(folders[1], "--resume")
    for process, folder in ((whole, folders[0]), (resumed, folders[1])):
        assert process.wait(240) == 0, (folder / "output.txt").read_text()
    runs = [folder / "runs" / "experiment" / "latest" for folder in folders]
    assert differences(*runs) == []
    assert len(list(folders[1].glob("runs/*/2*"))) == 1, "one run folder"
    identifier = (runs[1] / "wandb" / "run_id.txt").read_text()
    parts = [path.name for path in (runs[1] / "wandb").glob("offline-run-*")]
    assert len(parts) == 2, "W&B joins the two by their id"
    assert all(part.endswith(f"-{identifier}") for part in parts)
