"""The three claims of Zee, Lakshmana & Nwogu 2022, held against the data at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compresslens.statistics import holm
from compresslens.study.models import Model
from compresslens.study.thresholds import Thresholds
from compresslens.study.verdicts import LEAST_IMAGES, Verdict

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


def claims(
    models: Sequence[Model], looks: Mapping[str, Verdict], fools: Mapping[str, Verdict], thresholds: Thresholds
) -> list[Claim]:
    """All three.

    The first two are about every compressed model: one that does worse contradicts them, and all must do as well to
    support them. The third is about some: it is supported by one that is harder to fool, or takes more gradient
    evaluations, by more than counts as the same, and contradicted if all are shown to be neither. What counts as
    harder, easier or slower must also be significant after Holm's correction over the models.

    Args:
        models: those that have a reference.
        looks: verdicts by the name of the model.
        fools: likewise.
        thresholds: of the verdicts.
    """
    names = [model.name for model in models]
    p = _adjusted({name: fools[name].p for name in names if fools[name].estimate is not None})
    answers = [
        "undecided" if fools[name].answer in {"harder", "easier"} and p[name] >= SIGNIFICANT else fools[name].answer
        for name in names
    ]
    return [
        Claim(
            "Compressed models keep, or even improve, explainability.",
            _of_all([looks[name].answer for name in names], good={"yes"}, bad={"weaker", "no"}),
            [f"{name}: {looks[name].answer}, {looks[name].reason}" for name in names],
        ),
        Claim(
            "Robustness under the Carlini & Wagner attack is maintained.",
            _of_all(answers, good={"yes", "harder"}, bad={"easier"}),
            [f"{name}: {fools[name].answer}, {fools[name].reason}" for name in names],
        ),
        _harder_or_slower(models, fools, thresholds),
    ]


def _harder_or_slower(models: Sequence[Model], fools: Mapping[str, Verdict], thresholds: Thresholds) -> Claim:
    costs = {model.name: model.evaluations_ratio() for model in models}
    tested = {("harder", name): verdict.p for name, verdict in fools.items() if verdict.estimate is not None}
    tested |= {("slower", name): cost.p for name, cost in costs.items() if cost is not None}
    p = _adjusted(tested)
    most = 1 + thresholds.distance
    evidence, supports, against = [], [], []
    for model in models:
        name, verdict, cost = model.name, fools[model.name], costs[model.name]
        harder = verdict.answer == "harder" and p["harder", name] < SIGNIFICANT
        not_harder = verdict.estimate is not None and (verdict.estimate.interval or (0, 2 * most))[1] <= most
        if verdict.estimate is None:
            text = f"{name}: {verdict.answer}, {verdict.reason}"
        else:
            text = f"{name}: {verdict.reason}, p = {p['harder', name]:.2g} after Holm"
        if cost is None or cost.estimate.interval is None or cost.estimate.n < LEAST_IMAGES:
            evidence.append(f"{text}; cost of the attack not measured{'' if cost is None else ' on enough images'}")
            supports.append(harder)
            against.append(False)
            continue
        low, high = cost.estimate.interval
        evidence.append(
            f"{text}; {cost.estimate.value:.2f} × the evaluations ({low:.2f} to {high:.2f}, {cost.estimate.n} images), "
            f"p = {p['slower', name]:.2g}"
        )
        supports.append(harder or (low > most and p["slower", name] < SIGNIFICANT))
        against.append(not_harder and high <= most)
    if all(fools[model.name].answer == "not measured" and costs[model.name] is None for model in models):
        outcome = "not measured"
    else:
        outcome = "supported" if any(supports) else "contradicted" if all(against) else "undecided"
    return Claim("Some forms of compression make the attack harder or slower.", outcome, evidence)


def _of_all(answers: Sequence[str], good: set[str], bad: set[str]) -> str:
    if all(answer == "not measured" for answer in answers):
        return "not measured"
    if any(answer in bad for answer in answers):
        return "contradicted"
    return "supported" if all(answer in good for answer in answers) else "undecided"


def _adjusted(p: Mapping[Any, float]) -> dict[Any, float]:
    return dict(zip(p, map(float, holm(list(p.values()))), strict=True)) if p else {}
