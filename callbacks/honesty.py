"""Can the distances of the attack be believed?"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch

from callbacks.accuracy import gather
from callbacks.carlini_wagner import CarliniWagner, refuse_low_precision
from callbacks.probe import Findings, Probe
from callbacks.probe_images import Share
from compresslens.attacks.honesty import Check, examine, panel
from compresslens.attacks.victim import Victim, is_right, refinement
from compresslens.errors import UserError
from compresslens.reporting.honesty_figure import draw_honesty
from compresslens.reporting.metric import Metric
from datamodules.transformed import collate

CHUNK = 64
EVALUATIONS = 40  # where nothing says otherwise


class Honesty(Probe):
    """Checks, at the end of a test or of `validate`, whether an attack on the model can be believed.

    A network whose gradients lead nowhere withstands attacks that follow them, and is fooled by others. The checks are
    those of `compresslens.attacks.honesty`. `robustness/masking` is the number of checks that failed, of n that could
    be made; the verdict in words and all checks are in `results.json`, a picture of each in `figures/honesty.png`.

    A model with fake quantizers is converted to INT8, as in `callbacks.CarliniWagner`: that is what must not be fooled
    more easily by other attacks.

    Args:
        samples: images of the data's fixed, class-balanced set; those count that model and reference are right on.
        evaluations: gradient evaluations per image of the attack; None: those of the trainer's
            `callbacks.CarliniWagner`, whose distances are in question, or 40 if there is none.
        refine: further ones around the best point; None: those of `callbacks.CarliniWagner`, or as that has it.
        directions: of Gaussian noise, per image.
        queries: of the black-box attack Square, per image and radius.
        apgd_steps: of the attack APGD, per image and radius.
    """

    name = "honesty"

    def __init__(
        self,
        samples: int = 32,
        evaluations: int | None = None,
        refine: int | None = None,
        directions: int = 4,
        queries: int = 50,
        apgd_steps: int = 10,
    ) -> None:
        super().__init__(samples)
        budgets = {"directions": directions, "queries": queries, "apgd_steps": apgd_steps}
        for name, value in {"evaluations": evaluations, **budgets}.items():
            if value is not None and value < 1:
                raise UserError(f"Honesty: {name} is {value}; it must be at least 1")
        if refine is not None and refine < 0:
            raise UserError(f"Honesty: refine is {refine}; it must not be negative")
        self.budgets = budgets
        self.evaluations = evaluations
        self.refine = refine

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Complains at once if the weights themselves are of low precision, in which margins drown."""
        super().setup(trainer, pl_module, stage)
        refuse_low_precision(self, trainer)

    def measure(self, module: Any, share: Share) -> Findings:
        """Examines the images of all ranks on every rank: there are few, and the checks are about all of them."""
        indices = gather([{"index": share.indices}])["index"]
        batch = collate([share.dataset[int(index)] for index in indices])
        images, labels = batch[0].to(share.device, share.dtype), batch[1].to(share.device)
        victim = Victim.of(module.model)
        reference = None if module.reference is None else Victim.of(module.reference)
        victims = [victim] if reference is None else [victim, reference]
        networks = {network for each in victims for network in (each.network, each.differentiable)}
        right = torch.stack([is_right(network, images, labels, CHUNK) for network in networks]).all(0)
        budgets = self.budgets | self._attack(module.trainer, victims)
        checks = examine(
            victim.differentiable,
            images[right],
            labels[right],
            reference=None if reference is None else reference.differentiable,
            artefact=victim.network if victim.is_artefact else None,
            chunk_size=CHUNK,
            **budgets,
        )
        verdict, text = panel(checks)
        count = int(right.sum())
        details = {"verdict": verdict, "text": text, "images": count, "budgets": budgets}
        return Findings(
            metrics={"robustness/masking": masking(checks)},
            details={**details, "checks": [check.as_json() for check in checks]},
            figures={"honesty": partial(draw_honesty, checks, title=text)} if checks else {},
            verdicts={"robustness": text},
        )

    def _attack(self, trainer: pl.Trainer, victims: list[Victim]) -> dict[str, int]:
        """The budget of the attack in question."""
        probe = next((found for found in trainer.callbacks if isinstance(found, CarliniWagner)), None)  # type: ignore[attr-defined]
        evaluations = self.evaluations or (EVALUATIONS if probe is None else probe.evaluations)
        refine = probe.refine if probe is not None and self.refine is None else self.refine
        return {"evaluations": evaluations, "refine": refinement(refine, victims)}


def masking(checks: list[Check]) -> Metric:
    """How many checks failed, of n that could be made; not a number if none could."""
    made = [check for check in checks if check.verdict != "skipped"]
    failed = sum(check.verdict == "fail" for check in made)
    return Metric(float(failed) if made else math.nan, n=len(made))
