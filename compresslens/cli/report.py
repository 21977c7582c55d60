"""`python report.py RUN [RUN …]`: several models on one page."""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from compresslens import runs
from compresslens.cli.thresholds import add_threshold_options, thresholds
from compresslens.errors import UserError

RUN = "a run folder; or a name, or the folder of all runs of a name: the latest finished one of each seed"


def main(arguments: Sequence[str]) -> int:
    """Writes the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="report.py", description="Several compressed models on one page.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=RUN)
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of the report (default: report)")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="where names are looked up (default: runs)")
    parser.add_argument("--title", default="Compressed models beside the ones they came from")
    add_threshold_options(parser)
    parser.add_argument("--wandb", action="store_true", help="also as a W&B report; without a login, to publish later")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="the wandb_report.json of a report: publishes it")
    options = parser.parse_args(arguments)
    if bool(options.runs) == (options.publish is not None):
        parser.error("give runs to report on, or --publish FILE")
    try:
        if options.publish is not None:
            to_wandb(options.publish)
            return 0
        limits = thresholds(vars(options))
        report(options.runs, options.runs_dir, options.output, options.title, **limits, wandb=options.wandb)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def report(
    given: Sequence[str],
    runs_dir: Path,
    output: Path,
    title: str,
    localization: float,
    distance: float,
    wandb: bool = False,
) -> None:
    """Reads the runs and writes `index.html`, `report.json`, `report.csv` and a card for each model.

    With `wandb` also `wandb_report.json`, which is published if there is a login.

    Raises:
        UserError: runs that cannot be read or compared, or the report cannot be written.
    """
    from compresslens.reporting.model_card import model_card
    from compresslens.reporting.report_page import write_page
    from compresslens.reporting.report_parts import parts_of
    from compresslens.study.models import models_of
    from compresslens.study.reading import find_runs
    from compresslens.study.summary import rows, summary
    from compresslens.study.thresholds import Thresholds

    found, notes = find_runs(given, runs_dir)
    models = models_of(found)
    content = summary(models, Thresholds(localization, distance), notes)
    parts = parts_of(models)
    try:
        runs.write_json(output / "report.json", content)
        texts = {f"{model['name']}.md": model_card(model, content) for model in content["models"]}
        for name, text in {"report.csv": _table(rows(content)), **texts}.items():
            runs.write_atomically(output / name, partial(runs.write_text, text))
        page = partial(write_page, content=content, models=models, title=title, parts=parts)
        runs.write_atomically(output / "index.html", page)
        if wandb:
            from compresslens.reporting.wandb_report import write_specification

            write_specification(output, content, models, title, parts)
    except OSError as error:
        raise UserError(f"cannot write the report to {output}: {error.strerror}") from None
    for note in content["notes"]:
        print(f"note: {note}")
    for model in content["models"]:
        looks, fools = model["looks_at_the_right_thing"], model["as_hard_to_fool"]
        print(f"{model['name']}: looks at the right thing: {looks['answer']}; as hard to fool: {fools['answer']}")
    print(f"report: {output / 'index.html'}")
    if wandb:
        to_wandb(output / "wandb_report.json", later=True)


def to_wandb(file: Path, later: bool = False) -> None:
    """Publishes a report on W&B.

    Args:
        file: its `wandb_report.json`.
        later: without a login, say how to publish it some other time, instead of raising UserError.
    """
    from compresslens.reporting.wandb_report import publish, why_not_online

    reason = why_not_online() if later else None
    if reason is None:
        print(f"W&B report: {publish(file)}")
    else:
        print(f"W&B: {reason}; publish it later: `python report.py --publish {shlex.quote(str(file))}`")


def _table(lines: list[dict[str, object]]) -> str:
    buffer = io.StringIO()
    if lines:
        writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return buffer.getvalue()
