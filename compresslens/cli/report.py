"""`python report.py RUN [RUN …]`: several models on one page."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from compresslens import runs
from compresslens.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Writes the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="report.py", description="Several compressed models on one page.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a name: its latest run of each seed")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of the report (default: report)")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="where names are looked up (default: runs)")
    parser.add_argument("--title", default="Compressed models beside the ones they came from")
    parser.add_argument(
        "--localization", type=float, default=0.1, help="share of the energy on the object that may be lost (0.1)"
    )
    parser.add_argument("--distance", type=float, default=0.1, help="adversarials may lie 1 + this nearer (0.1)")
    options = parser.parse_args(arguments)
    try:
        report(options.runs, options.runs_dir, options.output, options.title, options.localization, options.distance)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(
    given: Sequence[str], runs_dir: Path, output: Path, title: str, localization: float, distance: float
) -> None:
    """Reads the runs and writes `index.html`, `report.json`, `report.csv` and a card for each model."""
    if not 0 <= localization < 1 or not distance >= 0:
        raise UserError("--localization must be in [0, 1), --distance at least 0")
    from compresslens.reporting.model_card import model_card
    from compresslens.reporting.report_page import write_page
    from compresslens.study.models import models_of
    from compresslens.study.reading import find_runs
    from compresslens.study.summary import rows, summary
    from compresslens.study.verdicts import Thresholds

    found, notes = find_runs(given, runs_dir)
    models = models_of(found)
    content = summary(models, Thresholds(localization, distance), notes)
    try:
        runs.write_json(output / "report.json", content)
        runs.write_text(_table(rows(content)), output / "report.csv")
        for model in content["models"]:
            runs.write_text(model_card(model, content), output / f"{model['name']}.md")
        page = partial(write_page, content=content, models=models, title=title)
        runs.write_atomically(output / "index.html", page)
    except OSError as error:
        raise UserError(f"cannot write the report to {output}: {error.strerror}") from None
    for note in content["notes"]:
        print(f"note: {note}")
    for model in content["models"]:
        looks, fools = model["looks_at_the_right_thing"], model["as_hard_to_fool"]
        print(f"{model['name']}: looks at the right thing: {looks['answer']}; as hard to fool: {fools['answer']}")
    print(f"report: {output / 'index.html'}")


def _table(lines: list[dict[str, object]]) -> str:
    buffer = io.StringIO()
    if lines:
        writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return buffer.getvalue()
