"""`predictions.parquet`: what `train.py predict` is for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from callbacks.accuracy import gather
from compresslens import runs
from compresslens.samples import Columns
from datamodules.samplers import evaluation_indices


class Predictions(pl.Callback):
    """Writes predicted class, confidence and the probability of every class for each sample, in the samples' order."""

    def __init__(self) -> None:
        self._batches: list[Columns] = []

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the probabilities of a batch, without the padding of the last batches of several ranks."""
        loader = trainer.predict_dataloaders
        batch_size = loader.batch_sampler.batch_size  # Lightning wraps the batch sampler of a prediction
        indices, real = evaluation_indices(loader, batch_idx, batch_size, trainer.global_rank, trainer.world_size)
        columns = {"index": indices, "label": batch[1], "probabilities": outputs}
        self._batches.append({name: value.cpu().numpy()[real.numpy()] for name, value in columns.items()})

    def on_predict_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Gathers and writes."""
        samples = gather(self._batches)
        self._batches = []
        if not trainer.is_global_zero:
            return
        import pandas as pd

        probabilities = samples.pop("probabilities")
        names = getattr(trainer.datamodule, "class_names", [str(label) for label in range(probabilities.shape[1])])
        frame = pd.DataFrame(samples)
        frame["prediction"], frame["confidence"] = probabilities.argmax(1), probabilities.max(1)
        table = pd.DataFrame(probabilities, columns=[f"probability_{name}" for name in names])
        whole = pd.concat([frame, table], axis=1)
        runs.write_atomically(Path(trainer.default_root_dir) / "predictions.parquet", partial(write_parquet, whole))


def write_parquet(frame: Any, path: Path) -> None:
    """Writes a table without its index."""
    frame.to_parquet(path, index=False)
