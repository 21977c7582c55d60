"""Lightning's trainer with a precision "auto", without Apple's GPU unless asked for it, and with an export."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.precision.precision import _PRECISION_INPUT
from pytorch_lightning.accelerators import Accelerator, MPSAccelerator
from pytorch_lightning.utilities.rank_zero import rank_zero_info


class Trainer(pl.Trainer):
    """`pytorch_lightning.Trainer` whose precision may be "auto", and which takes no GPU without float64 by itself.

    Args:
        accelerator: as Lightning's, but "auto" means "cpu" where Lightning would take Apple's GPU: the probes compute
            in float64 in places, which that has not.
        precision: as Lightning's, or "auto": bfloat16 mixed precision where the processor computes with it natively,
            else float32 (bfloat16 in software is many times slower). What was chosen is printed and stands in
            `results.json`.
        limit_train_batches: as Lightning's, like the others that follow.
        limit_val_batches: likewise.
        limit_test_batches: likewise.
        limit_predict_batches: likewise.
        overfit_batches: likewise.
        val_check_interval: likewise.
        options: Lightning's.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        precision: _PRECISION_INPUT | Literal["auto"] | None = None,
        # As Lightning's, but for how they are written: typing caches Union[int, float] and Union[float, int] as one, so
        # that after any import that made the latter, "1" would be read as 1.0, which is all batches instead of one.
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        options |= {"limit_train_batches": limit_train_batches, "limit_val_batches": limit_val_batches}
        options |= {"limit_test_batches": limit_test_batches, "limit_predict_batches": limit_predict_batches}
        options |= {"overfit_batches": overfit_batches, "val_check_interval": val_check_interval}
        if accelerator == "auto" and MPSAccelerator.is_available() and not torch.cuda.is_available():
            accelerator = "cpu"
            rank_zero_info("accelerator: cpu (auto): Apple's GPU does not compute in float64, which the probes need")
        if precision == "auto":
            precision = "bf16-mixed" if native_bfloat16(accelerator) else "32-true"
            rank_zero_info(f"precision: {precision} (auto)")
        super().__init__(accelerator=accelerator, precision=precision, **options)

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
