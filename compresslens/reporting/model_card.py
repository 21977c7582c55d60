"""A model card in Markdown (Mitchell et al. 2019) from what a report says of a model."""

from __future__ import annotations

from typing import Any

SPECIAL = r"\`*_{}[]<>#|$~&"  # with GitHub's and W&B's formulas, entities and struck out text


def model_card(model: dict[str, Any], content: dict[str, Any]) -> str:
    """The card.

    Args:
        model: one of `content["models"]`.
        content: from `compresslens.study.summary`.
    """
    lines = [f"# {plain(model['name'])}", ""]
    for question, key in (
        ("Looks at the right thing", "looks_at_the_right_thing"),
        ("As hard to fool", "as_hard_to_fool"),
    ):
        verdict = model[key]
        lines += [f"**{question}:** {plain(verdict['answer'])}: {plain(verdict['reason'])}", ""]
    lines += ["| metric | value | 95 % interval | n | reference |", "|---|---|---|---|---|"]
    for name, metric in model["metrics"].items():
        if metric["value"] is None:
            continue
        interval = (
            "" if metric["ci95"] is None or None in metric["ci95"] else "{:.4g} to {:.4g}".format(*metric["ci95"])
        )
        reference = "" if metric["reference"] is None else f"{metric['reference']:.4g}"
        lines.append(f"| {plain(name)} | {metric['value']:.4g} | {interval} | {metric['n']} | {reference} |")
    seeds = ", ".join(str(seed) for seed in model["seeds"])
    lines += ["", f"Measured on the {content['split']} split; seeds {seeds}.", ""]
    lines += [f"- run {plain(run['folder'])}, torch {run['versions'].get('torch', 'unknown')}" for run in model["runs"]]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text whose characters mean nothing to Markdown."""
    return "".join(f"\\{sign}" if sign in SPECIAL else sign for sign in " ".join(str(text).split()))
