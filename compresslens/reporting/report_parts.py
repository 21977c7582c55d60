"""Figures, lists and pictures of a report's page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from compresslens.reporting import report_figures as draw
from compresslens.samples import MODEL, REFERENCE, Floats
from compresslens.study import columns as data_of
from compresslens.study.calibration import outcomes, reliability
from compresslens.study.models import Model

CLASSES = 10  # that are listed for each model
GALLERY = 24
EXAMPLES = 8
MAP_PARTS = ("what", "labels", "wrong")
MODELS = 16  # in a picture
Shown = TypeVar("Shown")
Read = Callable[[Model, str], dict[str, Any] | None]


@dataclass(frozen=True)
class Parts:
    """What takes time to make, and is shown in more than one place.

    Attributes:
        figures: all for which there are data: "place", "address", "alt" and "caption".
        classes: see :func:`hurt_classes`.
        gallery: thumbnails of images that compression lost.
        shared: whether all models have seen the same images.
    """

    figures: list[dict[str, str]]
    classes: list[dict[str, Any]]
    gallery: list[dict[str, Any]]
    shared: bool


def parts_of(models: Sequence[Model]) -> Parts:
    """Draws the figures and gathers the rest."""
    names, same = class_names(models), data_of.of_one_seed(models)
    return Parts(figures(models, same, names), hurt_classes(models, names), gallery(same, names), bool(same))


def figures(models: Sequence[Model], same: Sequence[Model], names: Sequence[str]) -> list[dict[str, str]]:
    """All figures for which there are data, with their captions.

    Args:
        models: of which the figures are.
        same: those of their runs that are of the same images.
        names: of the classes.
    """
    found = []
    for metric, label in (("footprint/bytes", "megabytes on disk"), ("footprint/latency_ms", "latency, ms (batch 1)")):
        scale = 1e-6 if metric == "footprint/bytes" else 1.0
        points = {
            model.name: (scale * model.value(metric), model.value("accuracy/top1"))
            for model in models
            if np.isfinite(model.value(metric)) and np.isfinite(model.value("accuracy/top1"))
        }
        if points:
            picture = draw.pareto(points, references(models, metric, scale), label)
            found.append(figure("cost", picture, f"top-1 accuracy against {label}", f"Accuracy against {label}."))
    caption = "For each image's class: yellow is where the class's evidence lies. The same images for every model."
    for looks in in_pictures(beside_references(same, common_examples(same))):
        found.append(figure("looks", draw.looks(looks, names), "class activation maps", caption))
    seen = beside_references(same, data_of.tsne_map)
    caption = "Each model's map is aligned with its reference's. Rings: misclassified. One seed."
    for part in in_pictures(seen):
        positions, labels, wrong = ({name: data[kind] for name, data in part.items()} for kind in MAP_PARTS)
        window = np.concatenate([data["what"] for data in seen.values()])
        picture = draw.maps(positions, labels, wrong, names, (window.min(0), window.max(0)))
        found.append(figure("features", picture, "t-SNE maps of the features", caption))
    pairs = {
        model.name: (ours, theirs if len(theirs := data_of.distances(model, REFERENCE)) else None)
        for model in models
        if len(ours := data_of.distances(model))
    }
    caption = (
        "Share of images fooled within a distance, model and reference on the same images: those that both "
        "classify correctly. Bands: 95 % bootstrap interval over images."
    )
    for curves in in_pictures(pairs):
        every = np.concatenate([values for pair in pairs.values() for values in pair if values is not None])
        farthest = float(every[np.isfinite(every)].max(initial=0))
        picture = draw.success(curves, farthest)
        found.append(figure("fooled", picture, "attack success against distance", caption))
    both = {model.name: (confidence_points(model, MODEL), confidence_points(model, REFERENCE)) for model in models}
    caption = "Accuracy of the predictions of each confidence, in ten bins; bars: 95 % Wilson intervals. All seeds."
    for sure in in_pictures({name: (ours, theirs) for name, (ours, theirs) in both.items() if ours is not None}):
        found.append(figure("calibration", draw.reliability_diagrams(sure), "accuracy against confidence", caption))
    return found


def references(models: Sequence[Model], metric: str, scale: float) -> list[tuple[float, float]]:
    """Cost and accuracy of each network that the models came from; of a cost that every run has measured the median."""
    costs: dict[tuple[float, float], list[float]] = {}
    for model in models:
        network = model.reference("accuracy/top1"), model.reference("footprint/bytes")
        if np.isfinite(model.reference(metric)):
            costs.setdefault(network, []).append(scale * model.reference(metric))
    return sorted((float(np.median(of_network)), accuracy) for (accuracy, _), of_network in costs.items())


def in_pictures(found: Mapping[str, Shown]) -> Iterator[dict[str, Shown]]:
    """Some models at a time: a picture of a hundred would be large, and take much memory."""
    names = list(found)
    for start in range(0, len(names), MODELS):
        yield {name: found[name] for name in names[start : start + MODELS]}


def confidence_points(model: Model, prefix: str) -> Floats | None:
    """Points of the reliability diagram of a model or its reference, all seeds together."""
    found = [outcomes(run.samples, prefix) for run in model.runs]
    known = [of_run for of_run in found if of_run is not None]
    if len(known) < len(found):
        return None
    every = pd.concat(known)
    return reliability(every["confidence"].to_numpy(), every["hit"].to_numpy())


def beside_references(models: Sequence[Model], read: Read) -> dict[str, dict[str, Any]]:
    """What there is of the models, each reference in front of those that came from it.

    Args:
        models: of one seed.
        read: from a model and a prefix, "" or "reference_", to what is shown; None if there is nothing. Two are of the
            same network if their "what" is the same: a reference that is among the models has the model's name.
    """
    shown = [(model.name, ours, read(model, REFERENCE)) for model in models if (ours := read(model, MODEL)) is not None]
    groups: list[tuple[Any, dict[str, Any]]] = []
    for name, ours, theirs in shown:
        for reference, members in groups:
            if _same(theirs, reference):
                members[name] = ours
                break
        else:
            groups.append((theirs, {name: ours}))
    originals: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for reference, members in groups:
        if reference is None:
            continue
        known = [name for name, ours, theirs in shown if theirs is None and _same(ours, reference)]
        originals |= dict.fromkeys(known)
        others = " and others" if len(members) > 1 else ""
        found[f"{known[0]} (reference)" if known else f"reference of {next(iter(members))}{others}"] = reference
        found |= members
    alone = {name: ours for name, ours, theirs in shown if theirs is None and name not in originals}
    return found | alone


def _same(first: dict[str, Any] | None, second: dict[str, Any] | None) -> bool:
    return first is not None and second is not None and np.array_equal(first["what"], second["what"])


def figure(place: str, picture: bytes, alt: str, caption: str) -> dict[str, str]:
    """A figure as the page takes it."""
    return {"place": place, "address": address(picture, "png"), "alt": alt, "caption": caption}


def address(data: bytes, kind: str) -> str:
    """A picture in an address."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def common_examples(models: Sequence[Model]) -> Read:
    """Reads the pictures of those images that all models have kept."""
    kept = {model.name: found for model in models if (found := data_of.examples(model)) is not None}
    common = set.intersection(*(set(found["index"].tolist()) for found in kept.values())) if kept else set()

    def read(model: Model, prefix: str) -> dict[str, Any] | None:
        found = kept.get(model.name)
        if found is None or f"{prefix}map" not in found:
            return None
        places = [place for place, index in enumerate(found["index"].tolist()) if index in common][:EXAMPLES]
        columns = {"what": f"{prefix}map", "predicted": f"{prefix}predicted", "image": "image", "label": "label"}
        return {name: found[column][places] for name, column in columns.items()} if places else None

    return read


def class_names(models: Sequence[Model]) -> list[str]:
    """As the first run that has pictures knows them; else the numbers of the classes."""
    for model in models:
        found = data_of.examples(model)
        if found is not None:
            return [str(name) for name in found["class_names"]]
    labels = [label for model in models for label in data_of.labels(model)]
    return [str(label) for label in range(max(labels, default=-1) + 1)]


def hurt_classes(models: Sequence[Model], names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each model the classes whose accuracy changed most."""
    found: list[dict[str, Any]] = []
    for model in models:
        rows = data_of.per_class(model)
        for row in rows:
            row["name"] = names[row["label"]]
        if rows:
            worst = sorted(rows, key=lambda row: -abs(row["change"]))[:CLASSES]
            found.append({"name": model.name, "rows": sorted(worst, key=lambda row: row["change"])})
    return found


def gallery(models: Sequence[Model], names: Sequence[str]) -> list[dict[str, Any]]:
    """Thumbnails of images that compression lost, as far as a probe has kept them."""
    from PIL import Image

    stored: dict[int, Any] = {}
    for model in models:
        if (kept := model.runs[0].arrays("thumbnails")) is not None:
            stored |= dict(zip(kept["index"].tolist(), kept["thumbnail"], strict=True))
    found: list[dict[str, Any]] = []
    for index, row in data_of.hurt(models).iterrows():
        if index not in stored or len(found) == GALLERY:
            continue
        buffer = io.BytesIO()
        Image.fromarray(stored[index]).save(buffer, "PNG")  # type: ignore[index]
        name = names[int(row["label"])]
        found.append(
            {"index": index, "name": name, "wrong": int(row["wrong"]), "address": address(buffer.getvalue(), "png")}
        )
    return found
