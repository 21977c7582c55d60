"""Is the compressed network still as hard to fool? The Carlini & Wagner attack on it and on its reference."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from callbacks.accuracy import gather
from callbacks.carlini_wagner_report import EXAMPLES, artefact_details, figures, notes, pictures
from callbacks.probe import Findings, Probe
from callbacks.probe_images import Chunk, Share
from compresslens.attacks.paired import Pair, attack_cost, attack_pair
from compresslens.attacks.robustness import cost_metrics, distance_metrics, harder, slower
from compresslens.attacks.victim import Victim, refinement
from compresslens.errors import UserError
from compresslens.export.latency import processor
from compresslens.samples import MODEL, REFERENCE, Columns

LOW_PRECISION = ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")


class CarliniWagner(Probe):
    """Writes the `robustness/cw_*` metrics and `robustness/transfer_from_reference`, per-sample values and two figures.

    The model and its reference are attacked on the same images: those that both classify correctly. Two attacks answer
    two questions. *How far* is the nearest adversarial: the projection solver, which finds the nearest ones. *What does
    the attack cost*: Carlini & Wagner's own (Adam), on fewer images, since it takes ten times as long.

    A model with fake quantizers is converted to INT8, and that is what is attacked (`compresslens.attacks.artefact`).

    Args:
        samples: number of images before any are left out; None: the data's own number (`data.probe_samples`).
        evaluations: gradient evaluations per image that the projection solver spends.
        refine: steps of refinement per image after that; None: 60 if the activations of the model or its reference are
            rounded, else 0. Both get the same.
        cost_samples: the cost of the attack is measured on those of so many images that both classify correctly; 0: not
            at all, and there are no metrics of it.
        square_queries: forward passes per image of a black-box attack on a converted INT8 model; 0: none.
        chunk_size: images that are attacked at a time.
        every_n_epochs: see `Probe`.
        time_budget: seconds after which no further chunk is begun; the figures are then of the images that were
            covered, and the details say how many. None: no limit.
    """

    name = "carlini_wagner"

    def __init__(
        self,
        samples: int | None = None,
        evaluations: int = 40,
        refine: int | None = None,
        cost_samples: int = 32,
        square_queries: int = 0,
        chunk_size: int = 32,
        every_n_epochs: int | None = None,
        time_budget: float | None = None,
    ) -> None:
        super().__init__(samples, every_n_epochs, time_budget)
        options = {"evaluations": (evaluations, 1), "refine": (refine or 0, 0), "cost_samples": (cost_samples, 0)}
        options |= {"square_queries": (square_queries, 0), "chunk_size": (chunk_size, 1)}
        for option, (value, least) in options.items():
            if value < least:
                raise UserError(f"CarliniWagner: {option} is {value}; it must be at least {least}")
        self.evaluations = evaluations
        self.refine = refine
        self.cost_samples = cost_samples
        self.square_queries = square_queries
        self.chunk_size = chunk_size

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Complains at once if the weights themselves are of low precision, in which margins drown."""
        super().setup(trainer, pl_module, stage)
        refuse_low_precision(self, trainer)

    def measure(self, module: Any, share: Share) -> Findings:
        """Attacks this rank's share, chunk by chunk, and gathers."""
        victims = {MODEL: Victim.of(module.model)}
        if module.reference is not None:
            victims[REFERENCE] = Victim.of(module.reference)
        batches: list[Columns] = []
        shown: list[Columns] = []
        for chunk in share.chunks(self.chunk_size):
            columns, pair = self._attack(chunk, victims)
            batches.append(columns)
            if sum(len(part["index"]) for part in shown) < EXAMPLES:
                shown.append(pictures(chunk, pair, victims))
        samples, examples = gather(batches), gather(shown)
        metrics = distance_metrics(samples) | (cost_metrics(samples) if self.cost_samples else {})
        return Findings(
            metrics=metrics,
            details=self._details(samples, share.total, refinement(self.refine, victims.values())),
            columns=samples,
            figures=figures(samples, examples, module.trainer.datamodule.class_names),
        )

    def _attack(self, chunk: Chunk, victims: dict[str, Victim]) -> tuple[Columns, Pair]:
        pair = attack_pair(
            chunk.images,
            chunk.labels,
            victims,
            evaluations=self.evaluations,
            refine=self.refine,
            square_queries=self.square_queries,
            chunk_size=self.chunk_size,
        )
        columns = {"index": chunk.indices, **pair.columns}
        if self.cost_samples:
            costly = torch.from_numpy(chunk.positions < self.cost_samples).to(pair.attacked.device) & pair.attacked
            columns |= attack_cost(chunk.images, chunk.labels, costly, victims, self.chunk_size)
        return columns, pair

    def _details(self, samples: Columns, total: int, refine: int) -> dict[str, Any]:
        """How it was measured; and the two questions, in pairs of the same image: is it harder, is it slower?"""
        covered, attacked = len(samples["index"]), int(samples["cw_attacked"].sum())
        settings = {"evaluations": self.evaluations, "refine": refine, "chunk_size": self.chunk_size}
        settings |= {"cost_samples": self.cost_samples, "square_queries": self.square_queries}
        details: dict[str, Any] = {
            "settings": settings,
            "images": {"wanted": total, "covered": covered, "attacked": attacked},
            "device": processor(),
        }
        if "reference_cw_l2" in samples:
            details["harder"] = harder(samples)
            details["slower"] = slower(samples) if self.cost_samples else None
        if "cw_twin_agrees" in samples:
            details["artefact"] = artefact_details(samples)
        details["notes"] = notes(samples, total)
        return details


def refuse_low_precision(probe: Probe, trainer: pl.Trainer) -> None:
    """Raises UserError if the weights themselves are of low precision."""
    if trainer.precision in LOW_PRECISION:
        who = type(probe).__name__
        raise UserError(f"{who} needs weights in float32: set trainer.precision to 32-true or bf16-mixed")
