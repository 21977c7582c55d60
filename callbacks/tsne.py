"""Do the features still tell the classes apart as they did? t-SNE maps of model and reference, and measures."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from callbacks.accuracy import gather
from callbacks.probe import Drawing, Findings, Probe
from callbacks.probe_images import Share
from callbacks.rank_zero import on_rank_zero
from callbacks.tsne_report import evaluate, maps_to_draw
from compresslens.embeddings.features import FEATURES, LOGITS, tapped_features
from compresslens.errors import UserError
from compresslens.reporting.tsne_figure import draw_maps
from compresslens.reporting.tsne_page import write_page
from compresslens.samples import MODEL, NAMES, REFERENCE, Columns
from datamodules.samplers import evaluation_indices
from datamodules.selection import balanced_indices

THUMBNAIL = 32  # pixels, longer side


class TSNE(Probe):
    """Writes the `embedding/*` metrics, per-sample values, the figure `tsne` and the interactive page `tsne.html`.

    The features are what goes into the classifier. They are read in the loop's own forward pass, of a class-balanced
    choice of the images. The model's map starts from the reference's, so the two can be compared by eye and by figure.

    Args:
        samples: number of images, class-balanced; None: 1000.
        perplexity: of t-SNE; needs 3 × perplexity + 1 images.
        neighbours: k of kNN accuracy, trustworthiness and continuity.
        every_n_epochs: see `Probe`.
        time_budget: seconds for the maps; one that is cut short is drawn, and said to be unfinished. None: no limit.
        page: whether to write the interactive page.
    """

    name = "tsne"

    def __init__(
        self,
        samples: int | None = None,
        perplexity: float = 30,
        neighbours: int = 10,
        every_n_epochs: int | None = None,
        time_budget: float | None = None,
        page: bool = True,
    ) -> None:
        self.most = 1000 if samples is None else samples
        super().__init__(self.most, every_n_epochs, time_budget)
        if not 1 <= perplexity < math.inf:
            raise UserError(f"TSNE: perplexity is {perplexity}; it must be at least 1")
        if neighbours < 1:
            raise UserError(f"TSNE: neighbours is {neighbours}; it must be at least 1")
        self.perplexity = perplexity
        self.neighbours = neighbours
        self.page = page
        self._taps: dict[str, dict[str, Tensor]] = {}
        self._open = ExitStack()
        self._wanted = np.zeros(0, dtype=np.int64)
        self._batches: list[Columns] = []
        self._notes: list[str] = []

    # Reading features while the loop runs ------------------------------------------------------------------------

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Taps the networks."""
        self._tap(trainer, pl_module, "test")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Taps the networks, within a fit only if it is time."""
        if trainer.state.fn == "validate" or self._is_due(trainer):
            self._tap(trainer, pl_module, "val")

    def on_test_batch_start(self, *args: Any) -> None:
        """Forgets what callbacks behind this one have asked the networks after the batch before."""
        self._forget()

    def on_validation_batch_start(self, *args: Any) -> None:
        """Likewise."""
        self._forget()

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the features of a batch."""
        self._collect(trainer, pl_module, batch, batch_idx, trainer.test_dataloaders, trainer.num_test_batches)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Likewise."""
        self._collect(trainer, pl_module, batch, batch_idx, trainer.val_dataloaders, trainer.num_val_batches)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Removes the taps, if the loop ended early."""
        self._untap()

    def _tap(self, trainer: Any, module: Any, split: str) -> None:
        self._untap()
        data = trainer.datamodule
        self._wanted = balanced_indices(data.labels(split), self.most, data.seed)
        self._batches, self._notes = [], []
        networks = {MODEL: module.model} | ({} if module.reference is None else {REFERENCE: module.reference})
        for prefix, network in networks.items():
            try:
                self._taps[prefix] = self._open.enter_context(tapped_features(network))
            except UserError as error:
                self._notes.append(f"no features of the {NAMES[prefix]}: {error}")
        if MODEL not in self._taps:
            self._untap()

    def _untap(self) -> None:
        self._open.close()
        self._taps = {}

    def _forget(self) -> None:
        for taps in self._taps.values():
            taps.clear()

    def _collect(self, trainer: Any, module: Any, batch: Any, batch_idx: int, loader: Any, batches: list[Any]) -> None:
        if not self._taps:
            return
        rank, ranks = trainer.global_rank, trainer.world_size
        indices, real = evaluation_indices(loader, batch_idx, loader.batch_size, rank, ranks)
        keep = real.numpy() & np.isin(indices.numpy(), self._wanted)
        if keep.any():
            if REFERENCE in self._taps and FEATURES not in self._taps[REFERENCE]:  # nobody else has asked it
                with torch.no_grad(), trainer.precision_plugin.forward_context():
                    module.reference(batch[0])
            chosen = torch.from_numpy(keep).to(batch[0].device)
            found: Columns = {"index": indices.numpy()[keep], "label": batch[1].cpu().numpy()[keep]}
            for prefix, taps in self._taps.items():
                found[f"{prefix}features"] = taps[FEATURES][chosen].float().cpu().numpy()
                found[f"{prefix}predicted"] = taps[LOGITS][chosen].float().argmax(1).cpu().numpy()
            found["thumbnail"] = thumbnails(batch[0][chosen])
            self._batches.append(found)
        if batch_idx + 1 >= batches[0]:
            self._untap()  # before other probes run the networks

    # Maps and measures -------------------------------------------------------------------------------------------

    def measure(self, module: Any, share: Share) -> Findings:
        """Gathers the features; rank zero embeds and measures them while the others wait."""
        batches, self._batches = self._batches, []
        samples = gather(batches)
        if not samples:
            notes = self._notes or ["none of the chosen images was among the batches"]
            return Findings({}, {"images": {"wanted": share.total, "covered": 0}, "notes": notes})
        evaluation = partial(evaluate, perplexity=self.perplexity, neighbours=self.neighbours)
        findings = on_rank_zero(partial(evaluation, samples, share, self._notes))
        kept = {"thumbnails": {name: samples[name] for name in ("index", "thumbnail")}}
        if share.rank > 0 or "tsne_x" not in findings.columns:
            return replace(findings, arrays=kept)
        drawn = maps_to_draw(findings, samples, module.trainer.datamodule.class_names)
        pages: dict[str, Drawing] = {"tsne": partial(write_page, maps=drawn)} if self.page else {}
        return replace(findings, figures={"tsne": partial(draw_maps, maps=drawn)}, pages=pages, arrays=kept)


def thumbnails(images: Tensor) -> np.ndarray:
    """Small copies N×H×W×3 uint8 of images N×C×H×W in [0, 1]."""
    factor = min(1.0, THUMBNAIL / max(images.shape[2:]))
    size = [max(1, round(side * factor)) for side in images.shape[2:]]
    small = F.interpolate(images.float(), size, mode="bilinear", antialias=True) if factor < 1 else images.float()
    return (255 * small.clamp(0, 1)).round().byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
