"""Everything that a report says, as plain values: what `report.json` holds and the page shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from compresslens.reporting.metric import finite
from compresslens.statistics import holm
from compresslens.study.calibration import calibration
from compresslens.study.claims import SIGNIFICANT, claims
from compresslens.study.models import DISTANCE, MEANS, Change, Model
from compresslens.study.thresholds import Thresholds
from compresslens.study.verdicts import as_hard_to_fool, looks_at_the_right_thing

SCHEMA = 1
# Not what model and reference have not both (similarity), nor what is measured on maps made in different ways.
TESTED = ("accuracy/top1", *(name for name in MEANS if name not in {"cam/similarity", "embedding/trustworthiness"}))


def summary(models: Sequence[Model], thresholds: Thresholds, notes: Sequence[str]) -> dict[str, Any]:
    """The whole comparison; what is not known is None.

    Args:
        models: as read.
        thresholds: of the verdicts.
        notes: what was left out, and why.
    """
    alone = [model.name for model in models if not model.has_reference]
    said = [*notes, *([f"without a reference, and so without verdicts: {', '.join(alone)}"] if alone else [])]
    compared = [model for model in models if model.has_reference]
    looks = {model.name: looks_at_the_right_thing(model, thresholds) for model in compared}
    fools = {model.name: as_hard_to_fool(model, thresholds) for model in compared}
    changes = {model.name: _changes(model) for model in compared}
    _adjust(changes)
    return {
        "schema": SCHEMA,
        "thresholds": {"localization": thresholds.localization, "distance": thresholds.distance},
        "notes": said,
        "split": models[0].runs[0].results["split"],
        "data": models[0].runs[0].data,
        "models": [
            {
                "name": model.name,
                "has_reference": model.has_reference,
                "seeds": [run.seed for run in model.runs],
                "metrics": {name: _metric(model, name) for name in model.metrics},
                "changes": changes.get(model.name, {}),
                "looks_at_the_right_thing": _verdict(looks.get(model.name)),
                "as_hard_to_fool": _verdict(fools.get(model.name)),
                "runs": [_provenance(run) for run in model.runs],
            }
            for model in models
        ],
        "calibration": calibration(models),
        "costs": [cost for model in compared if (cost := _cost(model)) is not None],
        "claims": [
            {"text": claim.text, "outcome": claim.outcome, "evidence": list(claim.evidence)}
            for claim in claims(compared, looks, fools, thresholds)
        ],
    }


def rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of all models as a table, for `report.csv`."""
    return [
        {
            "model": model["name"],
            "seeds": len(model["seeds"]),
            "metric": name,
            "value": metric["value"],
            "low": metric["ci95"][0] if metric["ci95"] else None,
            "high": metric["ci95"][1] if metric["ci95"] else None,
            "n": metric["n"],
            "reference": metric["reference"],
            **{key: model["changes"].get(name, {}).get(key) for key in ("change", "p_adjusted")},
        }
        for model in content["models"]
        for name, metric in model["metrics"].items()
    ]


def _metric(model: Model, name: str) -> dict[str, Any]:
    estimate = model.estimate(name)
    interval = None if estimate.interval is None else list(estimate.interval)
    return {
        "value": finite(estimate.value),
        "ci95": interval,
        "n": estimate.n,
        "reference": finite(model.reference(name)),
    }


def _changes(model: Model) -> dict[str, dict[str, Any]]:
    """By metric, the paired change; and the ratio of distances, under a name of its own."""
    found: dict[str, Change | None] = {name: model.change(name) for name in TESTED}
    found[DISTANCE] = model.distance_ratio()
    return {
        name: {
            "change": finite(change.estimate.value),
            "ci95": None if change.estimate.interval is None else list(change.estimate.interval),
            "n": change.estimate.n,
            "p": finite(change.p),
        }
        for name, change in found.items()
        if change is not None
    }


def _cost(model: Model) -> dict[str, Any] | None:
    """What the attack costs, model over reference: evaluations, and by the clock the geometric mean of the seeds."""
    ratio = model.evaluations_ratio()
    if ratio is None:
        return None
    found = [details.get("slower") or {} for details in model.detail("carlini_wagner")]
    clock: dict[str, float | None] = {}
    for name in ("seconds_ratio", "seconds_ratio_without_networks"):
        known = [of_run[name] for of_run in found if of_run.get(name) is not None]
        complete = len(known) == len(model.runs)
        clock[name] = math.exp(sum(map(math.log, known)) / len(known)) if complete else None
    estimate = ratio.estimate
    evaluations = {"evaluations_ratio": estimate.value, "ci95": list(estimate.interval or ()), "n": estimate.n}
    return {"name": model.name, **evaluations, **clock}


def _adjust(changes: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Adds p-values adjusted over all models and measures (Holm), and whether a change is significant.

    That takes the interval, too, to exclude "no change": the test of ranks is not about the mean that is shown.
    """
    tested = [
        (name, change) for of_model in changes.values() for name, change in of_model.items() if change["p"] is not None
    ]
    for (name, change), p in zip(tested, holm([change["p"] for _, change in tested]), strict=True):
        low, high = change["ci95"] or (-math.inf, math.inf)
        none = 1.0 if name == DISTANCE else 0.0
        change["p_adjusted"] = float(p)
        change["significant"] = bool(p < SIGNIFICANT and not low <= none <= high)


def _verdict(verdict: Any) -> dict[str, Any]:
    if verdict is None:
        return {"answer": "not measured", "reason": "it has no reference"}
    found: dict[str, Any] = {"answer": verdict.answer, "reason": verdict.reason}
    if verdict.estimate is not None:
        interval = verdict.estimate.interval
        found["value"] = finite(verdict.estimate.value)
        found["ci95"] = None if interval is None else [finite(bound) for bound in interval]
        found["n"] = verdict.estimate.n
        found["p"] = None if math.isnan(verdict.p) else verdict.p
    return found


def _provenance(run: Any) -> dict[str, Any]:
    results = run.results
    return {
        "folder": run.label,
        "seed": run.seed,
        "precision": results.get("precision"),
        "wall_seconds": results.get("wall_seconds", {}),
        "versions": results.get("versions", {}),
        "device": (results.get("details", {}).get("footprint") or {}).get("device"),
    }
