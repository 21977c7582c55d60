"""Parameters, multiply-accumulates and bytes, beside the reference's."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl

from callbacks.results import Results
from compresslens.footprint import count_macs, count_parameters, weights_bytes
from compresslens.reporting.metric import Metric


class Footprint(pl.Callback):
    """Writes the `footprint/*` metrics when a test (also the one that ends a fit) or a validation starts."""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Complains at once, not after the fit, if there is nowhere to write to."""
        Results.of(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures on rank zero."""
        self._measure(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures on rank zero, unless this is the validation within a fit."""
        if trainer.state.fn == "validate":
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Any, module: Any) -> None:
        if not trainer.is_global_zero:
            return
        started = time.monotonic()
        image_size = trainer.datamodule.image_size
        own = footprint(module.model, image_size)
        reference = footprint(module.reference, image_size) if module.reference is not None else {}
        metrics = {f"footprint/{name}": Metric(value, reference=reference.get(name)) for name, value in own.items()}
        Results.of(trainer).record(trainer, "footprint", metrics, time.monotonic() - started)


def footprint(network: Any, image_size: int) -> dict[str, int]:
    """Counts of one network."""
    parameters, nonzero = count_parameters(network)
    return {
        "parameters": parameters,
        "nonzero_parameters": nonzero,
        "macs": count_macs(network, image_size),
        "bytes": weights_bytes(network),
    }
