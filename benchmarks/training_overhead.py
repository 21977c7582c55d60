"""What the trainer costs: `train.py` with everything on, against a bare PyTorch loop of the same work.

    python benchmarks/training_overhead.py                     # the student alone
    python benchmarks/training_overhead.py --distillation      # both loops also run a teacher

Both run in one process and take turns epoch by epoch, on networks that begin with the same weights: an epoch of the
trainer (with its loggers, progress bar, metrics, checkpoints and validation), then an epoch of the bare loop (forward,
backward, optimizer, scheduler, and the same validation images). Prints the median time of an epoch of each, their
quartiles and the ratio of the medians. The first epoch of each warms up and is not counted.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

TEACHER = """
    teacher:
      class_path: compresslens.networks.create_network
      init_args: {{architecture: resnet34, num_classes: 10, image_size: 64, stem: imagenet, output_stride: 16}}
    losses: [{{class_path: compresslens.distillation.LogitKDLoss, init_args: {{temperature: 4.0, weight: 0.9}}}}]
    label_weight: 0.1
    cache_limit: {cache_limit}
"""
CONFIG = """
extends: {base}
model:
  class_path: lightning_modules.{method}
  init_args:
    label_smoothing: 0.0
{teacher}
"""


class BareEpochs(pl.Callback):
    """Runs an epoch of the bare loop after each epoch of the trainer, and times both."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
        self.network: Any = None
        self.began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Copies the network while both are still alike."""
        self.network = copy.deepcopy(pl_module.model)
        self.optimizer = pl_module.optimizer(self.network.parameters())
        self.scheduler = pl_module.scheduler(self.optimizer, total_steps=int(trainer.estimated_stepping_batches))
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """An epoch of the trainer, this callback being the last, is over: runs the other loop."""
        self.seconds["trainer"].append(time.perf_counter() - self.began)
        began = time.perf_counter()
        self.epoch(trainer, pl_module)
        self.seconds["bare"].append(time.perf_counter() - began)
        self.began = time.perf_counter()

    def epoch(self, trainer: pl.Trainer, module: Any) -> None:
        """One epoch as one would write it by hand."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        teacher = module.reference
        autocast = trainer.precision_plugin.forward_context
        self.network.train()
        for images, labels, *_ in data.train_dataloader():
            images = images.contiguous(memory_format=torch.channels_last)
            with autocast():
                logits = self.network(images).float()
                loss = F.cross_entropy(logits, labels)
                if teacher is not None:
                    with torch.no_grad():
                        soft = (teacher(images).float() / 4).softmax(1)
                    divergence = F.kl_div((logits / 4).log_softmax(1), soft, reduction="batchmean")
                    loss = 0.1 * loss + 0.9 * 16 * divergence
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
        self.network.eval()
        hits = 0
        with torch.no_grad():
            for images, labels, *_ in data.val_dataloader():
                with autocast():
                    logits = self.network(images.contiguous(memory_format=torch.channels_last))
                hits += int((logits.argmax(1) == labels).sum())


def measure(distillation: bool, epochs: int, overrides: list[str]) -> dict[str, list[float]]:
    """Seconds of each counted epoch, by loop."""
    from compresslens import runs
    from compresslens.cli import lightning_cli

    base = Path(__file__).resolve().parents[1] / "configs" / "baseline_resnet18.yaml"
    teacher = TEACHER.format(cache_limit=0) if distillation else ""
    method = "Distillation" if distillation else "ImageClassifier"
    bare = BareEpochs()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "benchmark.yaml"
        config.write_text(CONFIG.format(base=base, method=method, teacher=teacher))
        instantiate = lightning_cli.CLI.instantiate_trainer

        def with_bare_epochs(self: Any, **options: Any) -> Any:
            trainer = instantiate(self, **options)
            trainer.callbacks.append(bare)
            return trainer

        lightning_cli.CLI.instantiate_trainer = with_bare_epochs  # type: ignore[method-assign]
        arguments = ["--config", str(config), f"--trainer.max_epochs={epochs + 1}", *overrides]
        status = lightning_cli.start("fit", arguments, folder, lambda: runs.create_run(Path(folder), "benchmark"))
        assert status == 0, "the training failed"
        os.environ.pop(runs.RUN_DIRECTORY_VARIABLE, None)
    return {loop: seconds[1:] for loop, seconds in bare.seconds.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distillation", action="store_true", help="both loops also run a ResNet-34 teacher")
    parser.add_argument("--epochs", type=int, default=5, help="counted epochs of each loop")
    arguments, overrides = parser.parse_known_args()
    seconds = measure(arguments.distillation, arguments.epochs, overrides)
    print(f"\n{'loop':10}{'median s':>10}{'quartiles':>20}")
    for loop, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        print(f"{loop:10}{median:10.2f}{f'{low:.2f} to {high:.2f}':>20}")
    ratio = statistics.median(seconds["trainer"]) / statistics.median(seconds["bare"])
    pairs = statistics.median(a / b for a, b in zip(seconds["trainer"], seconds["bare"], strict=True))
    print(f"trainer / bare: ratio of the medians {ratio:.3f}, median of the paired ratios {pairs:.3f}")


if __name__ == "__main__":
    main()
