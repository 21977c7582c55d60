"""Can the distances of the attack be believed?"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.accuracy import gather
from callbacks.probe import Findings, Probe
from callbacks.probe_images import Share
from compresslens.attacks.honesty import Check, examine, panel
from compresslens.attacks.margin import margin
from compresslens.attacks.search import logits_in_chunks
from compresslens.attacks.victim import REFINEMENT, Victim
from compresslens.errors import UserError
from compresslens.reporting.honesty_figure import draw_honesty
from compresslens.reporting.metric import Metric
from datamodules.transformed import collate

CHUNK = 64


class Honesty(Probe):
    """Checks, at the end of a test or of `validate`, whether an attack on the model can be believed.

    A network whose gradients lead nowhere withstands attacks that follow them, and is fooled by others. The checks are
    those of `compresslens.attacks.honesty`. `robustness/masking` is the number of checks that failed, of n that could
    be made; the verdict in words and all checks are in `results.json`, a picture of each in `figures/honesty.png`.

    A model with fake quantizers is converted to INT8, as in `callbacks.CarliniWagner`: that is what must not be fooled
    more easily by other attacks.

    Args:
        samples: images of the data's fixed, class-balanced set; those count that model and reference are right on.
        evaluations: gradient evaluations per image of the attack, as in `callbacks.CarliniWagner`.
        refine: further ones around the best point; None: 60 where activations are rounded, else none.
        directions: of Gaussian noise, per image.
        queries: of the black-box attack Square, per image and radius.
        apgd_steps: of the attack APGD, per image and radius.
    """

    name = "honesty"

    def __init__(
        self,
        samples: int = 32,
        evaluations: int = 40,
        refine: int | None = None,
        directions: int = 4,
        queries: int = 50,
        apgd_steps: int = 10,
    ) -> None:
        super().__init__(samples)
        budgets = {"evaluations": evaluations, "directions": directions, "queries": queries, "apgd_steps": apgd_steps}
        for name, value in budgets.items():
            if value < 1:
                raise UserError(f"Honesty: {name} is {value}; it must be at least 1")
        if refine is not None and refine < 0:
            raise UserError(f"Honesty: refine is {refine}; it must not be negative")
        self.budgets = budgets
        self.refine = refine

    def measure(self, module: Any, share: Share) -> Findings:
        """Examines the images of all ranks on every rank: there are few, and the checks are about all of them."""
        indices = gather([{"index": share.indices}])["index"]
        batch = collate([share.dataset[int(index)] for index in indices])
        images, labels = batch[0].to(share.device, share.dtype), batch[1].to(share.device)
        victim = Victim.of(module.model)
        networks = {victim.network, victim.differentiable} | ({module.reference} - {None})
        right = torch.stack([is_right(network, images, labels) for network in networks]).all(0)
        budgets = {**self.budgets, "refine": self._refine(victim)}
        checks = examine(
            victim.differentiable,
            images[right],
            labels[right],
            reference=module.reference,
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

    def _refine(self, victim: Victim) -> int:
        if self.refine is not None:
            return self.refine
        return REFINEMENT if victim.rounded else 0


def masking(checks: list[Check]) -> Metric:
    """How many checks failed, of n that could be made; not a number if none could."""
    made = [check for check in checks if check.verdict != "skipped"]
    failed = sum(check.verdict == "fail" for check in made)
    return Metric(float(failed) if made else math.nan, n=len(made))


def is_right(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is classified correctly, with a positive margin (bool, N); logits that are NaN are not right.

    Args:
        network: left as it was.
        images: N×3×H×W in [0, 1].
        labels: N int64.
    """
    return margin(logits_in_chunks(network, images, CHUNK), labels) > 0
