"""The three claims of Zee, Lakshmana & Nwogu 2022, held against the data at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compresslens.statistics import holm
from compresslens.study.models import Model
from compresslens.study.verdicts import Verdict

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Claim:
    """A claim and what the data say of it.

    Attributes:
        text: the claim.
        outcome: "supported", "contradicted", "undecided" or "not measured".
        evidence: a sentence for each model.
    """

    text: str
    outcome: str
    evidence: Sequence[str]


def claims(models: Sequence[Model], looks: Mapping[str, Verdict], fools: Mapping[str, Verdict]) -> list[Claim]:
    """All three.

    The first two are about every compressed model: one that does worse contradicts them, and all must do as well to
    support them. The third is about some: one that is significantly harder or slower to attack (Holm's correction over
    the models) supports it, and it is contradicted if all are shown to be neither.

    Args:
        models: those that have a reference.
        looks: verdicts by the name of the model.
        fools: likewise.
    """
    names = [model.name for model in models]
    return [
        Claim(
            "Compressed models keep, or even improve, explainability.",
            _of_all([looks[name].answer for name in names], good={"yes"}, bad={"weaker", "no"}),
            [f"{name}: {looks[name].answer}, {looks[name].reason}" for name in names],
        ),
        Claim(
            "Robustness under the Carlini & Wagner attack is maintained.",
            _of_all([fools[name].answer for name in names], good={"yes", "harder"}, bad={"easier"}),
            [f"{name}: {fools[name].answer}, {fools[name].reason}" for name in names],
        ),
        _harder_or_slower(models, fools),
    ]


def slower(model: Model) -> list[dict[str, Any]]:
    """What the runs found of the cost of the attack: ratios of evaluations and of seconds."""
    found = [details.get("slower") for details in model.detail("carlini_wagner")]
    return [of_run for of_run in found if of_run]


def _harder_or_slower(models: Sequence[Model], fools: Mapping[str, Verdict]) -> Claim:
    known = [model for model in models if fools[model.name].estimate is not None]
    adjusted = holm([fools[model.name].p for model in known]) if known else np.zeros(0)
    evidence, supports, against = [], [], []
    for model, p in zip(known, adjusted, strict=True):
        verdict, costs = fools[model.name], slower(model)
        assert verdict.estimate is not None
        low, high = verdict.estimate.interval or (0.0, np.inf)
        is_harder = low > 1 and p < SIGNIFICANT
        is_slower = bool(costs) and all(of_run["ci95"][0] > 1 for of_run in costs)
        surely_not = high <= 1 and bool(costs) and all(of_run["ci95"][1] <= 1 for of_run in costs)
        supports.append(is_harder or is_slower)
        against.append(surely_not)
        ratios = ", ".join(f"{of_run['evaluations_ratio']:.2f}" for of_run in costs)
        cost = f"evaluations × {ratios}" if costs else "cost of the attack not measured"
        evidence.append(f"{model.name}: {verdict.reason}, p = {p:.2g} after Holm; {cost}")
    unreliable = [model for model in models if fools[model.name].answer == "unreliable figure"]
    evidence += [f"{model.name}: {fools[model.name].reason}" for model in unreliable]
    outcome = "undecided" if unreliable else "not measured"
    if known:
        outcome = "supported" if any(supports) else "contradicted" if all(against) else "undecided"
    return Claim("Some forms of compression make the attack harder or slower.", outcome, evidence)


def _of_all(answers: Sequence[str], good: set[str], bad: set[str]) -> str:
    if all(answer == "not measured" for answer in answers):
        return "not measured"
    if any(answer in bad for answer in answers):
        return "contradicted"
    return "supported" if all(answer in good for answer in answers) else "undecided"
