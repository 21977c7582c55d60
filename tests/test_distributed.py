"""Two processes on one machine, over gloo."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from compresslens.cli.requirements import ENTRY_POINT, undistributed_environment
from compresslens.distillation.teacher_cache import TeacherCache
from compresslens.reporting import CurvesLogger
from lightning_modules.pruning import PruneAndFinetune
from tests.lightning_modules import recipes, tiny
from tests.lightning_modules.tiny import Kill, NoiseData, TinyNetwork, differences, in_process, on_two_ranks, whole_run


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((folder / "results.json").read_text())["metrics"]


def logged(folder: Path) -> dict[tuple[str, str], float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return {(row["step"], row["name"]): float(row["value"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("recipe", [recipes.cached, recipes.maps, recipes.averaged_hints], ids=lambda r: r.__name__)
def test_fit_and_test(tmp_path: Path, recipe: recipes.Recipe) -> None:
    assert on_two_ranks(whole_run, tmp_path, partial(recipes.on_two_devices, recipe)) == [0, 0]
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    assert samples["index"].tolist() == list(range(43)), "no padding, nothing twice"
    assert metrics(tmp_path)["accuracy/top1"]["n"] == 43
    steps = [int(step) for step, name in logged(tmp_path) if name == "train/loss"]
    assert steps == sorted(set(steps)), "one process logs"
    assert max(steps) == 3 * tiny.BATCHES - 2


def test_killed_and_continued(tmp_path: Path) -> None:
    recipe = partial(recipes.on_two_devices, recipes.hints)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert on_two_ranks(whole_run, whole, recipe) == [0, 0]
    assert on_two_ranks(whole_run, killed, recipe, [Kill("on_train_batch_end", 14)]) == [-signal.SIGKILL] * 2
    assert on_two_ranks(whole_run, killed, recipe) == [0, 0]
    assert differences(whole, killed) == []


def pruned_on_each_rank(folder: Path, recipe: recipes.Recipe) -> None:
    pl.seed_everything(0, verbose=False)
    module, data, options, callbacks = recipes.on_two_devices(recipe)
    loop = tiny.trainer(folder, callbacks, **options)
    loop.fit(module, datamodule=data)
    checkpoint: dict[str, object] = {}
    module.on_save_checkpoint(checkpoint)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    torch.save({"weights": weights, **checkpoint}, folder / f"rank{loop.global_rank}.pt")


@pytest.mark.parametrize(
    "recipe",
    [recipes.pruned, recipes.pruned_to_a_pattern, recipes.narrowed, recipes.narrowed_at_once],
    ids=lambda r: r.__name__,
)
def test_ranks_prune_the_same(tmp_path: Path, recipe: recipes.Recipe) -> None:
    assert on_two_ranks(pruned_on_each_rank, tmp_path, recipe) == [0, 0]
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert tiny.unequal(one, other) == []
    assert one["pruning"]["masks"] or one["changes"]


@pytest.mark.parametrize("recipe", [recipes.pruned, recipes.narrowed], ids=lambda r: r.__name__)
def test_a_pruning_killed_and_continued(tmp_path: Path, recipe: recipes.Recipe) -> None:
    recipe = partial(recipes.on_two_devices, recipe)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert on_two_ranks(whole_run, whole, recipe) == [0, 0]
    assert on_two_ranks(whole_run, killed, recipe, [Kill("on_train_batch_end", 14)]) == [-signal.SIGKILL] * 2
    assert on_two_ranks(whole_run, killed, recipe) == [0, 0]
    assert differences(whole, killed) == []


@pytest.mark.parametrize("recipe", [recipes.rounded, recipes.learned_steps], ids=lambda r: r.__name__)
def test_ranks_round_the_same(tmp_path: Path, recipe: recipes.Recipe) -> None:
    """After the last validation: weights, ranges and running statistics."""
    assert on_two_ranks(rounded_on_each_rank, tmp_path, recipe) == [0, 0]
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert tiny.unequal(one, other) == []
    assert any(name.endswith((".max_val", ".step")) for name in one)


def rounded_on_each_rank(folder: Path, recipe: recipes.Recipe) -> None:
    pl.seed_everything(0, verbose=False)
    module, data, options, callbacks = recipes.on_two_devices(recipe)
    loop = tiny.trainer(folder, callbacks, **{**options, "max_epochs": 1})
    loop.fit(module, datamodule=data)
    torch.save(module.model.state_dict(), folder / f"rank{loop.global_rank}.pt")


def impossible() -> recipes.Experiment:
    return PruneAndFinetune(TinyNetwork(8), "channels", macs=0.01), NoiseData(), {}, []


def test_a_target_that_cannot_be_met_ends_all_ranks(tmp_path: Path) -> None:
    assert on_two_ranks(pruned_on_each_rank, tmp_path, impossible, timeout=60) == [1, 1]


def evaluate(folder: Path, checkpoint: Path, what: str, devices: int) -> None:
    pl.seed_everything(0, verbose=False)
    module, data, _, _ = recipes.hints()
    loop = tiny.trainer(
        folder, devices=devices, strategy="ddp" if devices > 1 else "auto", logger=CurvesLogger(str(folder))
    )
    getattr(loop, what)(module, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)


@pytest.mark.parametrize(("what", "size"), [("validate", 29), ("test", 43)])
def test_evaluation_does_not_depend_on_the_number_of_ranks(tmp_path: Path, what: str, size: int) -> None:
    assert in_process(whole_run, tmp_path, recipes.hints) == 0
    checkpoint, one, two = tmp_path / "checkpoints" / "best.ckpt", tmp_path / "one", tmp_path / "two"
    assert in_process(evaluate, one, checkpoint, what, 1) == 0
    assert on_two_ranks(evaluate, two, checkpoint, what, 2) == [0, 0]
    assert metrics(one) == metrics(two)
    assert metrics(one)["accuracy/agreement"]["n"] == size
    assert (one / "samples.parquet").read_bytes() == (two / "samples.parquet").read_bytes()
    assert logged(one) == pytest.approx(logged(two), abs=1e-6)
    assert len(logged(one)) > 8


def fill_cache(folder: Path, ranks: int) -> None:
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if ranks > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    samples = NoiseData().train_samples
    many = torch.utils.data.ConcatDataset([samples] * 5)  # 375 samples, which is no multiple of the chunks
    cache = TeacherCache.fill(TinyNetwork(), many, tiny.CLASSES, torch.device("cpu"), show_progress=False)
    torch.save(cache.logits, folder / f"{rank}-of-{ranks}.pt")


def test_the_teachers_cache_is_the_same_on_all_ranks(tmp_path: Path) -> None:
    assert in_process(fill_cache, tmp_path, 1) == 0
    assert on_two_ranks(fill_cache, tmp_path, 2) == [0, 0]
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert torch.equal(alone, first)
    assert torch.equal(alone, second)
    assert alone.std() > 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_not_a_number_ends_all_ranks(tmp_path: Path, rank: int) -> None:
    recipe = partial(recipes.on_two_devices, partial(recipes.not_a_number, rank))
    statuses = on_two_ranks(whole_run, tmp_path, recipe, timeout=60)
    assert None not in statuses, "a rank hangs"
    assert 0 not in statuses


# The command line -----------------------------------------------------------------------------------------------------

CONFIG = """
extends: base/default.yaml
trainer: {max_epochs: 1, log_every_n_steps: 2, accelerator: cpu, devices: 2, strategy: ddp}
data:
  class_path: tests.lightning_modules.tiny.NoiseData
  init_args: {batch_size: 4}
model:
  class_path: lightning_modules.ImageClassifier
  init_args:
    network: {class_path: tests.lightning_modules.tiny.TinyNetwork}
    optimizer:
      class_path: torch.optim.SGD
      init_args: {lr: 0.1}
"""
NOT_A_NUMBER = """
extends: tiny.yaml
model:
  class_path: tests.lightning_modules.recipes.NaNClassifier
  init_args: {rank: RANK}
"""


def run(folder: Path, *command: str, config: str = "./tiny.yaml") -> subprocess.CompletedProcess[str]:
    (folder / "tiny.yaml").write_text(CONFIG)
    environment = {
        **undistributed_environment(),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ENTRY_POINT.parent),
        "WANDB_DATA_DIR": str(folder),
    }
    return subprocess.run(
        [sys.executable, *command, str(ENTRY_POINT), "--config", config],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param((), id="lightning"),
        pytest.param(("--standalone",), id="standalone", marks=pytest.mark.slow),
        pytest.param(("--master_port", "29613"), id="master_port", marks=pytest.mark.slow),
    ],
)
def test_command_line(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", "2", *launcher) if launcher else ()
    done = run(tmp_path, *torchrun)
    assert done.returncode == 0, done.stdout
    folders = list(tmp_path.glob("runs/*/2*"))
    assert len(folders) == 1, "one run folder"
    assert (folders[0] / "finished").exists()
    assert len(list(folders[0].glob("wandb/offline-run-*"))) == 1, "one W&B run"
    assert metrics(folders[0])["accuracy/top1"]["n"] == 43
    assert done.stdout.count("accuracy/top1") == 1, "one summary"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_command_line_with_a_loss_that_is_not_a_number(tmp_path: Path, rank: int) -> None:
    (tmp_path / "nan.yaml").write_text(NOT_A_NUMBER.replace("RANK", str(rank)))
    done = run(tmp_path, config="./nan.yaml")
    assert done.returncode not in (0, None)
    assert "the loss is nan at step 2" in done.stdout
