"""Lightning's trainer with one more precision: "auto"."""

from __future__ import annotations

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


def native_bfloat16(accelerator: Any) -> bool:
    """Whether the device that Lightning will train on computes with bfloat16 in hardware."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator not in ("auto", "cpu"):
        return False
    return any(
        getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)() for feature in ("avx512_bf16", "amx_tile")
    )
