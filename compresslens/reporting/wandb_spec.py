"""What a W&B report says, as plain values that need neither wandb nor a login.

`title`, headings, columns and titles of panels are plain text; what is called "markdown", and the cells of tables, is
Markdown in which names are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compresslens.reporting.model_card import plain
from compresslens.reporting.report_page import cell, shown
from compresslens.reporting.wandb_runs import PROJECT

SCHEMA = 1
HEADINGS = {
    "cost": "Accuracy against what it costs",
    "looks": "Where they look",
    "features": "What they see: t-SNE of the features",
    "fooled": "How far the nearest adversarials are",
    "page": "The whole report",
}
SCATTERS = (("footprint/bytes", "bytes on disk"), ("footprint/latency_ms", "latency, ms (batch 1)"))
CURVES = (("val/top1", "top-1 while training"), ("train/loss", "training loss"))
Block = dict[str, Any]


def specification(
    content: dict[str, Any],
    title: str,
    wandb_runs: Sequence[Mapping[str, Any]],
    media: Sequence[Mapping[str, str]],
    classes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The whole report.

    Args:
        content: from `compresslens.study.summary`.
        title: of the report.
        wandb_runs: from `compresslens.reporting.wandb_runs.wandb_run`, of all runs.
        media: what is logged for the report: "key", "kind" ("image", "html" or "table"), "place", "alt" and "caption",
            and whatever it takes to find the file.
        classes: from `compresslens.reporting.report_parts.hurt_classes`.

    Returns:
        "schema", "title", "description", "project", "runs", "media" and "blocks", an ordered list. A block is of the
        kind "heading" ("text"), "markdown" ("markdown"), "table" ("columns", "rows") or "panels" ("columns", how many
        stand side by side; "runs", "models" or "report": whose values they show; and "panels").
    """
    count = len(content["models"])
    description = (
        f"{count} model{'' if count == 1 else 's'}, {content['split']} split. Does each still look at the right thing, "
        "and is it as hard to fool as the network that it came from?"
    )
    logged = any(run["id"] is not None for run in wandb_runs)
    places = list(dict.fromkeys(item["place"] for item in media if item["kind"] == "image"))
    blocks = [_markdown(f"- Note: {plain(note)}" for note in content["notes"])] if content["notes"] else []
    blocks += [_heading("Verdicts"), *_verdicts(content), _heading("Figures"), *_figures(content)]
    for place in places:
        blocks += [_heading(HEADINGS.get(place, place.capitalize())), *_media(media, place)]
        if place == "cost" and logged:
            blocks.append(_panels("models", 2, _scatters(content)))
    blocks += [_heading("What the attack costs"), *_costs(content["costs"]), _heading("Who was hurt"), *_hurt(classes)]
    if logged:
        blocks += [_heading("Run by run"), _panels("models", 3, _by_run(content))]
    blocks += [_heading("The paper's claims"), *_claims(content), _heading("Where it comes from")]
    blocks += [_provenance(content, wandb_runs), _heading(HEADINGS["page"]), *_media(media, "page")]
    return {
        "schema": SCHEMA,
        "title": title,
        "description": description,
        "project": next((run["project"] for run in wandb_runs if run["id"] is not None), PROJECT),
        "runs": list(wandb_runs),
        "media": list(media),
        "blocks": blocks,
    }


def _verdicts(content: dict[str, Any]) -> list[Block]:
    rows = [
        [plain(model["name"]), _verdict(model["looks_at_the_right_thing"]), _verdict(model["as_hard_to_fool"])]
        for model in content["models"]
    ]
    lost, factor = 100 * content["thresholds"]["localization"], 1 + content["thresholds"]["distance"]
    meaning = (
        f"The same means: no more than {lost:.0f} % of the energy that the reference's maps have on the object is "
        f"lost, and adversarials lie at most {factor:.2f} × nearer or farther; both with the whole 95 % interval."
    )
    return [_table(["model", "looks at the right thing", "as hard to fool"], rows), _markdown([meaning])]


def _verdict(verdict: Mapping[str, Any]) -> str:
    return f"**{plain(verdict['answer'])}**: {plain(verdict['reason'])}"


def _figures(content: dict[str, Any]) -> list[Block]:
    columns = shown(content)
    rows = [
        [plain(model["name"]), *(_figure(cell(model, metric)) for metric, _ in columns)] for model in content["models"]
    ]
    meaning = (
        "In brackets: 95 % interval. Bold: differs significantly from the reference on the same images (paired test, "
        "Holm's correction over this table)."
    )
    return [_table(["model", *(heading for _, heading in columns)], rows), _markdown([meaning])]


def _figure(found: Mapping[str, Any]) -> str:
    text = f"**{found['text']}**" if found["significant"] else found["text"]
    return f"{text} ({found['interval']})" if found["interval"] else text


def _media(media: Sequence[Mapping[str, str]], place: str) -> list[Block]:
    found = [item for item in media if item["place"] == place]
    panels = [{"kind": "media", "title": item["alt"], "keys": [item["key"]]} for item in found]
    return [_panels("report", min(2, len(panels)), panels), _markdown(plain(item["caption"]) for item in found)]


def _scatters(content: dict[str, Any]) -> list[Block]:
    known = {metric for metric, _ in shown(content)}
    return [
        {"kind": "scatter", "title": f"top-1 against {label}", "x": metric, "y": "accuracy/top1", "log_x": True}
        for metric, label in SCATTERS
        if {metric, "accuracy/top1"} <= known
    ]


def _by_run(content: dict[str, Any]) -> list[Block]:
    titles = dict(shown(content)) | {metric: label for metric, label in SCATTERS}  # W&B has bytes, not megabytes
    bars = [{"kind": "bar", "title": titles[metric], "metrics": [metric]} for metric, _ in shown(content)]
    lines = [{"kind": "line", "title": title, "x": "trainer/global_step", "y": [metric]} for metric, title in CURVES]
    return bars + lines


def _costs(costs: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not costs:
        return [_markdown(["Not measured: set `cost_samples` of `callbacks.CarliniWagner`."])]
    rows = [
        [
            plain(cost["name"]),
            f"{_times(cost['evaluations_ratio'])} ({_times(cost['ci95'][0])} to {_times(cost['ci95'][1])})",
            _times(cost["seconds_ratio"]),
            _times(cost["seconds_ratio_without_networks"]),
        ]
        for cost in costs
    ]
    return [_table(["model", "gradient evaluations", "seconds", "seconds without the network's"], rows)]


def _times(ratio: float | None) -> str:
    return "unknown" if ratio is None else f"× {ratio:.3f}"


def _hurt(classes: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not classes:
        return [_markdown(["Not known: it takes predictions of model and reference on the same images."])]
    rows = [
        [
            plain(of_model["name"]),
            plain(row["name"]),
            f"{100 * row['model']:.1f} %",
            f"{100 * row['reference']:.1f} %",
            f"{100 * row['change']:+.1f}",
            f"{row['p_adjusted']:.2g}",
            str(row["n"]),
        ]
        for of_model in classes
        for row in of_model["rows"]
    ]
    return [_table(["model", "class", "its accuracy", "reference's", "change", "p (Holm)", "images"], rows)]


def _claims(content: dict[str, Any]) -> list[Block]:
    rows = [
        [plain(claim["text"]), f"**{plain(claim['outcome'])}**", "; ".join(plain(line) for line in claim["evidence"])]
        for claim in content["claims"]
    ]
    return [_table(["claim (Zee, Lakshmana & Nwogu, ICPR 2022)", "by these data", "evidence"], rows)]


def _provenance(content: dict[str, Any], wandb_runs: Sequence[Mapping[str, Any]]) -> Block:
    identities = {(run["model"], run["folder"]): run["id"] for run in wandb_runs}
    rows = [
        [
            plain(run["folder"]),
            plain(identities.get((model["name"], run["folder"])) or "not logged"),
            str(run["seed"]),
            plain(run["precision"] or ""),
            f"{sum(run['wall_seconds'].values()) / 60:.1f}",
            plain(run["device"] or ""),
            plain(run["versions"].get("torch", "")),
        ]
        for model in content["models"]
        for run in model["runs"]
    ]
    return _table(["run", "W&B run", "seed", "precision", "minutes", "device", "torch"], rows)


def _heading(text: str) -> Block:
    return {"kind": "heading", "text": text}


def _markdown(lines: Any) -> Block:
    return {"kind": "markdown", "markdown": "\n".join(lines)}


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Block:
    return {"kind": "table", "columns": list(columns), "rows": [list(row) for row in rows]}


def _panels(of: str, columns: int, panels: Sequence[Block]) -> Block:
    return {"kind": "panels", "runs": of, "columns": columns, "panels": list(panels)}
