"""Writes the network as files that other programs can run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from compresslens.errors import UserError
from compresslens.export import Artefact, Format, Tolerance, export_model, is_int8, is_rounded
from compresslens.export.artefacts import check_formats, suitable_formats
from compresslens.export.parity import FLOAT, INT8

CALIBRATION_SAMPLES = 128


class Export(pl.Callback):
    """Writes `model/` into the run folder when the test that ends a fit starts, and under `train.py export`.

    By then the best checkpoint has been loaded. Every file is checked against the network on the probe subset of the
    validation split; one that computes something else is removed, and that is an error. The ONNX file of an INT8
    network is adapted to the runtimes if it then passes the check, else it is not, and a warning says so; the artefact
    records which (`adapted`, `rejected`).

    Args:
        formats: any of "onnx" (`model.onnx`), "torch_export" (`model.pt2`) and "safetensors" (`model.safetensors` and
            `recipe.json`; for networks of `create_network` only). None: all that suit the network.
        tolerance: greatest difference of a logit from the network's, as a share of the range of all logits; for float
            networks.
        int8_agreement: least share of images for which an INT8 network predicts the same class as the network with
            fake quantizers, or a file with learned steps the same as the network.

    Attributes:
        artefacts: what was written, by format.
    """

    def __init__(
        self,
        formats: tuple[Format, ...] | None = None,
        tolerance: float = 1e-3,
        int8_agreement: float = 0.995,
    ) -> None:
        check_formats(formats or ())
        if tolerance < 0 or not 0 <= int8_agreement <= 1:
            raise UserError("Export: tolerance must not be negative, int8_agreement must be in [0, 1]")
        self.formats = formats
        self.float_tolerance = Tolerance(tolerance, FLOAT.agreement)
        self.int8_tolerance = Tolerance(INT8.difference, int8_agreement)
        self.artefacts: dict[str, Artefact] = {}
        self.wanted = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Complains at once, not after the fit, if a format does not suit; forgets what was written before."""
        module: Any = pl_module
        check_formats(self.formats or (), module.model)
        self.artefacts = {}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers that the next test is of a network that was just trained."""
        self.wanted = True

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Exports on rank zero, if it is time; the other ranks wait, so that nothing disturbs what is timed next."""
        if not self.wanted:
            return
        self.wanted = False
        if trainer.is_global_zero:
            self._export(trainer, pl_module)
        trainer.strategy.barrier("export")

    def _export(self, trainer: Any, module: Any) -> None:
        folder = Path(trainer.default_root_dir) / "model"
        data = trainer.datamodule
        samples = data.probe_dataset("val")
        in_int8 = is_int8(module.model)
        calibration = [batch[0] for batch in data.calibration_loader(CALIBRATION_SAMPLES)] if in_int8 else []
        self.artefacts = export_model(
            module.model,
            folder,
            data.image_size,
            torch.stack([samples[index][0] for index in range(len(samples))]),
            torch.cat(calibration) if calibration else None,
            suitable_formats(module.model) if self.formats is None else self.formats,
            list(data.class_names),
            self.int8_tolerance if is_rounded(module.model) else self.float_tolerance,
        )


def report(artefacts: dict[str, Artefact]) -> str:
    """Sizes and parity, a line for each file."""
    lines = []
    for artefact in artefacts.values():
        parity = artefact.parity
        checked = "not verified: no runtime for it is installed (extra `deploy`)"
        if parity is not None:
            checked = (
                f"logits within {parity.difference:.2g} of the network's, {parity.agreement:.1%} of "
                f"{parity.images} predictions alike ({parity.runtime})"
            )
        if artefact.rejected is not None:
            difference, agreement = artefact.rejected.difference, artefact.rejected.agreement
            checked += f"; not adapted to INT8 runtimes: logits within {difference:.2g}, {agreement:.1%} alike"
        lines.append(f"{artefact.path}: {artefact.size:,} bytes, {artefact.deflated:,} deflated; {checked}")
    return "\n".join(lines)
