"""Run folders made up for tests: what a report reads, with known effects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

DATA: dict[str, Any] = {"class_path": "datamodules.MNISTScenes", "init_args": {"image_size": 64, "seed": 0}}


def write_run(
    runs_dir: Path,
    name: str,
    *,
    seed: int = 0,
    stamp: str = "20260101-000000",
    n: int = 120,
    energy: float = 0.0,
    distance: float = 1.0,
    accuracy: float = 0.0,
    masking: int | None = 0,
    failures: float = 0.0,
    cost: float | None = None,
    overconfidence: float = 0.0,
    sanity: bool = True,
    reference: bool = True,
    finished: bool = True,
    data: Any = None,
    schema: int = 1,
    **changes: Any,
) -> Path:
    """A run whose model differs from its reference by known amounts.

    Args:
        energy: added to the energy in the mask of each image, of which the reference has 0.4 on average.
        distance: factor of the distances of adversarials.
        accuracy: share of the images that only the reference is right on.
        masking: how many checks of the honesty panel failed; None: there was no panel.
        failures: share of the images on which the attack finds nothing for the model.
        cost: factor of the gradient evaluations that the attack takes; None: not measured.
        overconfidence: added to the model's confidence.
    """
    generator = np.random.default_rng(seed)
    folder = runs_dir / name / stamp
    folder.mkdir(parents=True)
    labels = np.arange(n) % 4
    right = generator.random(n) < 0.9
    wrong = (labels + 1) % 4
    lost = np.zeros(n, bool)
    lost[np.flatnonzero(right)[: round(accuracy * n)]] = True
    theirs = 0.4 + 0.05 * generator.standard_normal(n)
    l2 = np.exp(0.2 * generator.standard_normal(n))
    evaluations = np.exp(5 + 0.2 * generator.standard_normal(n))
    confidence = generator.uniform(0.8, 0.95, n)
    samples: dict[str, Any] = {
        "index": np.arange(n),
        "label": labels,
        "prediction": np.where(right & ~lost, labels, wrong),
        "cam_energy_in_mask": theirs + energy + 0.01 * generator.standard_normal(n),
        "cw_attacked": right & ~lost,
        "cw_l2": l2 * distance * np.exp(0.02 * generator.standard_normal(n)),
        "confidence": confidence + overconfidence,
        "brier": generator.uniform(0, 0.3, n) + overconfidence,
        "tsne_x": labels + 0.1 * generator.standard_normal(n),
        "tsne_y": generator.standard_normal(n),
    }
    if reference:
        samples |= {
            "reference_prediction": np.where(right, labels, wrong),
            "reference_cam_energy_in_mask": theirs,
            "reference_cw_l2": l2,
            "reference_confidence": confidence,
            "reference_brier": samples["brier"] - overconfidence,
        }
    failed = np.flatnonzero(samples["cw_attacked"])[: round(failures * n)]
    samples["cw_l2"][failed] = np.inf
    details: dict[str, Any] = {"cam": {"sanity": {"depends_on_weights": sanity}, "mask_area": {"value": 0.06}}}
    if cost is not None:
        samples["cw_adam_evaluations"] = evaluations * cost * np.exp(0.02 * generator.standard_normal(n))
        samples["reference_cw_adam_evaluations"] = evaluations
        ratio = {"evaluations_ratio": cost, "ci95": [cost - 0.01, cost + 0.01], "n": n, "seconds_ratio": None}
        details["carlini_wagner"] = {"slower": {**ratio, "seconds_ratio_without_networks": cost}}
    if masking is not None:
        text = "unreliable: gradients are masked because <b>" if masking else "no sign of masked gradients"
        checks = [{"name": "black_box", "verdict": "fail" if masking else "pass", "value": 0.0, "reason": "<i>"}]
        verdict = "unreliable" if masking else "ok"
        details["honesty"] = {"verdict": verdict, "text": text, "images": n, "checks": checks}
    pd.DataFrame(samples).to_parquet(folder / "samples.parquet", index=False)

    def metric(value: float, other: float | None) -> dict[str, Any]:
        return {"value": value, "ci95": [value - 0.01, value + 0.01], "n": n, "reference": other if reference else None}

    metrics = {
        "accuracy/top1": metric(float((right & ~lost).mean()), float(right.mean())),
        "cam/energy_in_mask": metric(float(samples["cam_energy_in_mask"].mean()), float(theirs.mean())),
        "footprint/bytes": {"value": 1e7, "ci95": None, "n": 1, "reference": 4e7 if reference else None},
    }
    metrics["accuracy/brier"] = metric(float(np.mean(samples["brier"])), 0.15)
    results = {
        "schema": schema,
        "name": name,
        "split": "test",
        "seed": seed,
        "metrics": metrics,
        "wall_seconds": {"fit": 60.0},
        "details": details,
        "versions": {"torch": "2"},
        "config": {
            "seed_everything": seed,
            "data": {**DATA, "init_args": {**DATA["init_args"], "seed": seed}} if data is None else data,
        },
        **changes,
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text("{}")
    if finished:
        (folder / "finished").touch()
    return folder
