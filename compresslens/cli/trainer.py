"""Lightning's trainer with one more precision, "auto", and one more thing to do: export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.precision.precision import _PRECISION_INPUT
from pytorch_lightning.utilities.rank_zero import rank_zero_info


class Trainer(pl.Trainer):
    """`pytorch_lightning.Trainer` whose precision may be "auto".

    Args:
        precision: as Lightning's, or "auto": bfloat16 mixed precision where the processor computes with it natively,
            else float32 (bfloat16 in software is many times slower). What was chosen is printed and stands in
            `results.json`.
        options: Lightning's.
    """

    def __init__(self, *, precision: _PRECISION_INPUT | Literal["auto"] | None = None, **options: Any) -> None:
        if precision == "auto":
            precision = "bf16-mixed" if native_bfloat16(options.get("accelerator", "auto")) else "32-true"
            rank_zero_info(f"precision: {precision} (auto)")
        super().__init__(precision=precision, **options)

    def export(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Writes the network, as configured or as in a checkpoint, to files that other programs can run.

        It is a test that ends after a batch, in which no callback but `callbacks.Export` takes part; nothing is logged.

        Args:
            model: the module.
            datamodule: its data, on which the files are checked.
            ckpt_path: the checkpoint.
            weights_only: whether it may hold tensors and plain values only.
        """
        from callbacks.export import Export, report

        callbacks: Any = self.callbacks  # type: ignore[has-type]
        export = next((callback for callback in callbacks if isinstance(callback, Export)), Export())
        export.wanted = True
        self.callbacks, self.loggers, self.limit_test_batches = [export], [], 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided")
            self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only, verbose=False)
        if self.is_global_zero:
            print(report(export.artefacts))


def native_bfloat16(accelerator: Any) -> bool:
    """Whether the device that Lightning will train on computes with bfloat16 in hardware."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator not in ("auto", "cpu"):
        return False
    return any(
        getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)() for feature in ("avx512_bf16", "amx_tile")
    )
