"""What figures and galleries of a report need from the runs' samples and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from compresslens.statistics import holm, mcnemar_p
from compresslens.study.models import Model, attacked, hits
from compresslens.study.reading import Arrays


def of_one_seed(models: Sequence[Model]) -> list[Model]:
    """A run of each model, all of the same images (the least seed of the data that all have); none if there is none."""
    shared = set.intersection(*({run.images_seed for run in model.runs} for model in models))
    if not shared:
        return []
    seed = min(shared, key=lambda seed: -1 if seed is None else seed)
    return [Model(model.name, [run for run in model.runs if run.images_seed == seed][:1]) for model in models]


def distances(model: Model, prefix: str = "") -> npt.NDArray[np.float64]:
    """C&W distances of the attacked images of all seeds; empty if it was not attacked."""
    column = f"{prefix}cw_l2"
    found = [attacked(run.samples)[column].to_numpy(np.float64) for run in model.runs if column in run.samples]
    return np.concatenate(found) if found else np.zeros(0)


def labels(model: Model) -> npt.NDArray[np.int64]:
    """Classes of all samples whose class was noted."""
    found = [run.samples["label"].dropna().to_numpy(np.int64) for run in model.runs if "label" in run.samples]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def tsne_map(model: Model, prefix: str = "") -> Arrays | None:
    """Positions N×2 ("what"), "labels" and whether misclassified ("wrong") of the first run; None if it has no map."""
    samples = model.runs[0].samples
    columns = [f"{prefix}tsne_x", f"{prefix}tsne_y", "label", f"{prefix}prediction"]
    if not set(columns) <= set(samples.columns):
        return None
    rows = samples[columns].dropna()
    of_class = rows["label"].to_numpy(np.int64)
    wrong = rows[f"{prefix}prediction"].to_numpy(np.int64) != of_class
    return {"what": rows[columns[:2]].to_numpy(np.float64), "labels": of_class, "wrong": wrong}


def examples(model: Model) -> Arrays | None:
    """The pictures that the class activation map probe of the first run has kept; None if there are none."""
    return model.runs[0].arrays("cam_examples")


def per_class(model: Model) -> list[dict[str, Any]]:
    """Who was hurt: accuracy of each class in model and reference, all seeds together, worst change first.

    McNemar's test for each class, Holm's correction over the classes.
    """
    known = [frame for run in model.runs if (frame := hits(run.samples)) is not None]
    if len(known) < len(model.runs):
        return []
    found = []
    for label, rows in pd.concat(known).groupby("label"):
        p = mcnemar_p(rows["ours"], rows["theirs"])
        accuracies = {"model": float(rows["ours"].mean()), "reference": float(rows["theirs"].mean())}
        found.append({"label": int(label), **accuracies, "n": len(rows), "p": p})  # type: ignore[arg-type]
    adjusted = holm([row["p"] for row in found])
    for row, p in zip(found, adjusted, strict=True):
        row["p_adjusted"] = float(p)
        row["change"] = row["model"] - row["reference"]
    return sorted(found, key=lambda row: row["change"])


def hurt(models: Sequence[Model]) -> pd.DataFrame:
    """Samples that the reference is right on, by how many models are wrong on them; of the first run of each.

    Hooker et al. 2019 call the images on which compressed and uncompressed networks disagree pruning identified
    exemplars.

    Returns:
        Index: of the sample; columns "label" and "wrong", the number of models; most first.
    """
    counts: pd.Series | None = None
    labels: pd.Series | None = None
    for model in models:
        rows = hits(model.runs[0].samples)
        if rows is None:
            continue
        lost = (~rows["ours"] & rows["theirs"]).astype(int)
        counts = lost if counts is None else counts.add(lost, fill_value=0)
        labels = rows["label"] if labels is None else labels.combine_first(rows["label"])
    if counts is None or labels is None:
        return pd.DataFrame({"label": [], "wrong": []})
    found = pd.DataFrame({"label": labels.reindex(counts.index).astype(int), "wrong": counts.astype(int)})
    return found[found["wrong"] > 0].sort_values("wrong", ascending=False, kind="stable")
