"""The report as one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from compresslens.reporting.honesty_figure import TITLES
from compresslens.reporting.report_parts import Parts
from compresslens.study.models import DISTANCE, Model
from compresslens.study.reading import Run
from compresslens.study.summary import TESTED
from compresslens.study.verdicts import LEAST_IMAGES

COLUMNS = (
    ("accuracy/top1", "top-1"),
    ("footprint/bytes", "megabytes"),
    ("footprint/latency_ms", "latency, ms"),
    ("footprint/speedup", "speed-up"),
    ("cam/energy_in_mask", "energy on object"),
    ("cam/pointing_game", "pointing game"),
    ("cam/grid_pointing", "grid pointing"),
    ("cam/similarity", "map similarity"),
    ("embedding/knn_accuracy", "kNN of features"),
    ("embedding/cka", "CKA"),
    ("robustness/cw_median_l2", "median L2"),
    ("robustness/cw_success", "attack success"),
    ("accuracy/ece", "calibration error"),
)
MEDIAN = "robustness/cw_median_l2"  # whose change is the ratio of distances
GOOD = {"yes", "harder", "supported", "pass"}
BAD = {"no", "weaker", "easier", "unreliable figure", "contradicted", "fail"}


def write_page(path: Path, content: dict[str, Any], models: Sequence[Model], title: str, parts: Parts) -> None:
    """Writes the page.

    Args:
        path: the HTML file.
        content: from `compresslens.study.summary`.
        models: the same ones.
        title: of the page.
        parts: from `compresslens.reporting.report_parts`.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("compresslens.reporting").joinpath("report_page.html").read_text(encoding="utf-8")
    )
    page = template.render(
        title=title,
        content=content,
        columns=[{"metric": metric, "title": heading} for metric, heading in shown(content)],
        cells={
            model["name"]: {metric: cell(model, metric) for metric in (*dict(COLUMNS), "accuracy/brier")}
            for model in content["models"]
        },
        least=LEAST_IMAGES,
        tested=", ".join(heading for metric, heading in shown(content) if metric in (*TESTED, MEDIAN)),
        parts=parts,
        honesty=honesty(models),
        data=as_text(content["data"]),
        versions=list(dict.fromkeys(as_text(run.results.get("versions", {})) for run in runs_of(models))),
        configs=[{"name": run.label, "text": as_text(run.results["config"])} for run in runs_of(models)],
        tone=lambda answer: "good" if answer in GOOD else "bad" if answer in BAD else "",
        minutes=lambda seconds: sum(seconds.values()) / 60,
    )
    path.write_text(page, encoding="utf-8")


def shown(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The columns that any model has a figure for."""
    return [
        (metric, heading)
        for metric, heading in COLUMNS
        if any(model["metrics"].get(metric, {}).get("value") is not None for model in content["models"])
    ]


def cell(model: dict[str, Any], metric: str) -> dict[str, Any]:
    """A figure as text, its interval, what it is sorted by, and whether it differs from the reference's."""
    found = model["metrics"].get(metric)
    if found is None or found["value"] is None:
        return {"text": "", "interval": "", "sort": "", "significant": False, "change": None}
    change = model["changes"].get(DISTANCE if metric == MEDIAN else metric)
    interval = found["ci95"]
    known = interval is not None and None not in interval
    return {
        "text": in_words(metric, found["value"]),
        "interval": " to ".join(in_words(metric, bound) for bound in interval) if known else "",
        "sort": repr(found["value"]),
        "significant": change is not None and change["significant"],
        "change": change,
    }


def in_words(metric: str, value: float) -> str:
    """A figure with the digits that matter."""
    if metric.startswith("footprint/bytes"):
        return f"{value / 1e6:.2f}"
    if metric.startswith("footprint/"):
        return f"{value:.2f}"
    return f"{value:.3f}"


def honesty(models: Sequence[Model]) -> dict[str, Any]:
    """What the honesty panel found for each model and seed: the names of the checks, and rows of their verdicts."""
    panels = [
        (model, run, found)
        for model in models
        for run in model.runs
        if (found := run.results.get("details", {}).get("honesty") or {}).get("checks")
    ]
    names = list(dict.fromkeys(check["name"] for *_, found in panels for check in found["checks"]))
    return {
        "titles": [TITLES.get(name, name) for name in names],
        "rows": [
            {
                "name": model.name,
                "seed": run.seed if len(model.runs) > 1 else None,
                "images": found["images"],
                "checks": [{check["name"]: check for check in found["checks"]}.get(name) for name in names],
            }
            for model, run, found in panels
        ],
    }


def runs_of(models: Sequence[Model]) -> list[Run]:
    """All of them."""
    return [run for model in models for run in model.runs]


def as_text(value: Any) -> str:
    """As JSON to be read."""
    return json.dumps(value, indent=1, ensure_ascii=False)
