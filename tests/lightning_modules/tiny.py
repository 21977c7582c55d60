"""A data set of coloured noise, networks of a few hundred weights, and whole runs in processes that can be killed."""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from callbacks import Accuracy, BestCheckpoint, Curves, Footprint, LastCheckpoint, Results
from compresslens.reporting import CurvesLogger
from datamodules import ImageDataModule
from datamodules.image_datamodule import Split

SIZE = 12
TIMED = re.compile("footprint/(latency_ms|speedup|peak_memory)|robustness/cw_seconds")
CLASSES = 7
BATCHES = 9
SIZES = {"train": 8 * BATCHES + 3, "val": 29, "test": 43}


class Noise(Dataset[Any]):
    """Noise whose brightness and colour depend on the class, so that something can be learned."""

    def __init__(self, split: Split, size: int) -> None:
        generator = np.random.default_rng((7, ["train", "val", "test"].index(split)))
        self.targets = np.arange(size) % CLASSES
        colour = np.stack([self.targets * 20, 200 - self.targets * 20, self.targets % 2 * 80], 1)[:, :, None, None]
        noise = generator.integers(0, 56, (size, 3, SIZE, SIZE))
        self.images = torch.from_numpy((colour + noise).astype(np.uint8))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])


class NoiseData(ImageDataModule):
    """75 training images (9 batches of 8), 29 to validate, 43 to test."""

    def __init__(self, batch_size: int = 8, eval_batch_size: int = 10, **options: Any) -> None:
        super().__init__(SIZE, batch_size, eval_batch_size, **options)

    @property
    def class_names(self) -> list[str]:
        return [f"class {number}" for number in range(CLASSES)]

    def build_dataset(self, split: Split) -> Noise:
        return Noise(split, SIZES[split])


class TinyNetwork(nn.Module):
    """Two convolutions with batch normalization, dropout and a linear classifier."""

    def __init__(self, width: int = 4, dropout: float = 0.3, classes: int = CLASSES, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
            self.dropout = nn.Dropout(dropout)
            self.classifier = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.layer2(self.layer1(images)).mean((2, 3))))


def probes() -> list[pl.Callback]:
    return [Curves(), Footprint(), Accuracy(), Results()]


def trainer(folder: Path, callbacks: list[pl.Callback] | None = None, **options: Any) -> pl.Trainer:
    """A quiet trainer on the CPU whose run folder is `folder`."""
    for noise in (
        "many workers",
        "isinstance.treespec",
        "barrier",
        "logging interval",
        "need to be provided",
        "overfit",
    ):
        warnings.filterwarnings("ignore", f".*{noise}")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return pl.Trainer(
        default_root_dir=folder,
        callbacks=probes() if callbacks is None else callbacks,
        enable_checkpointing=any(isinstance(c, BestCheckpoint | LastCheckpoint) for c in callbacks or []),
        **{"accelerator": "cpu", "devices": 1, "logger": False, "max_epochs": 3, **quiet, **options},
    )


# Runs that are killed -------------------------------------------------------------------------------------------------

Recipe = Callable[[], tuple[pl.LightningModule, ImageDataModule, dict[str, Any], list[pl.Callback]]]


class Kill(pl.Callback):
    """Ends the process like `kill -9` at the given call of a hook."""

    def __init__(self, hook: str, count: int) -> None:
        self.calls = 0
        self.count = count
        setattr(self, hook, self._called)

    def _called(self, *args: Any) -> None:
        self.calls += 1
        if self.calls == self.count:
            kill_this_process()


class Slow(pl.Callback):
    """Gives whoever watches from outside the time to strike."""

    def on_train_batch_end(self, *args: Any) -> None:
        time.sleep(0.05)


def kill_this_process(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def whole_run(
    folder: Path, recipe: Recipe, kill_first: Sequence[Kill] = (), kill_last: Sequence[Kill] = (), cadence: int = 4
) -> None:
    """What `train.py fit` does: fits from `last.ckpt` if there is one, and tests `best.ckpt`."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loaders' workers
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    module, data, options, more = recipe()
    callbacks = [*kill_first, BestCheckpoint(), LastCheckpoint(cadence), *more, *probes(), *kill_last]
    loop = trainer(folder, callbacks, **{"logger": CurvesLogger(str(folder)), "log_every_n_steps": 2, **options})
    last, best = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt"
    loop.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
    loop.test(module, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)


def in_process(function: Callable[..., None], *arguments: Any) -> int | None:
    """Exit status of a process of its own (negative: the signal that ended it)."""
    return in_processes([(function, *arguments)])[0]


def on_two_ranks(function: Callable[..., None], *arguments: Any, timeout: float = 120) -> list[int | None]:
    """Exit statuses of two processes that can form a group (None: one that hung)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return in_processes([(as_rank, rank, port, function, *arguments) for rank in range(2)], timeout)


def as_rank(rank: int, port: int, function: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_RANK=str(rank), NODE_RANK="0"
    )
    function(*arguments)


def in_processes(calls: list[tuple[Any, ...]], timeout: float = 120) -> list[int | None]:
    """Calls functions at the same time, each in a process forked from one that has imported what they need."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.lightning_modules.recipes", "timm.data", "pandas", "matplotlib.figure"])
    processes = [context.Process(target=function, args=arguments) for function, *arguments in calls]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    statuses = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return statuses


def differences(one: Path, other: Path) -> list[str]:
    """What two run folders do not have in common to the last bit; times apart."""
    found = []
    for name in ("best", "last"):
        states = [torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for folder in (one, other)]
        for state in states:
            del state["callbacks"]["Results"]  # has the time
            # Lightning counts validation batches again when it starts in front of an epoch's first batch.
            del state["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        found += [f"{name}.ckpt {place}" for place in unequal(*states)]
    if curves(one) != curves(other):
        found.append("metrics.csv")
    if (one / "samples.parquet").read_bytes() != (other / "samples.parquet").read_bytes():
        found.append("samples.parquet")
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    if untimed(results[0]["metrics"]) != untimed(results[1]["metrics"]):
        found.append("results.json")
    return found


def untimed(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics by name, without those that the machine's load decides."""
    return {name: value for name, value in metrics.items() if not TIMED.search(name)}


def curves(folder: Path) -> list[str]:
    """The lines of `metrics.csv`, likewise."""
    return [line for line in (folder / "metrics.csv").read_text().splitlines() if not TIMED.search(line)]


def traces(networks: Sequence[nn.Module]) -> dict[str, Any]:
    """All that a probe might change in networks, and the random states."""
    parts = [part for network in networks for part in network.modules()]
    parameters = [p for network in networks for p in network.parameters()]
    return {
        "weights": [copy.deepcopy(network.state_dict()) for network in networks],
        "gradients": [None if p.grad is None else p.grad.clone() for p in parameters],
        "required": [p.requires_grad for p in parameters],
        "flags": [part.training for part in parts],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts],
        "random": [torch.get_rng_state(), np.random.get_state()[1].tolist()],  # type: ignore[index]
    }


def unequal(one: Any, other: Any, place: str = "") -> list[str]:
    """Places where two nested structures differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if set(one) != set(other):
            return [f"{place} keys {sorted(map(str, set(one) ^ set(other)))}"]
        return [text for key in one for text in unequal(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [
            text
            for number, pair in enumerate(zip(one, other, strict=True))
            for text in unequal(*pair, f"{place}[{number}]")
        ]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [f"{place}: tensor"]
    same = type(one) is type(other) and (one == other or (one != one and other != other))  # not a number is itself
    return [] if same else [f"{place}: {one} != {other}"]
