"""The table that ends a run: the model beside its reference."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

WIDTH_WITHOUT_TERMINAL = 100
COUNTS = ("parameters", "nonzero_parameters", "macs", "peak_memory_bytes", "cw_gradients", "cw_first_success")


def print_summary(folder: Path) -> None:
    """Prints `results.json` of a run as a table; says where everything is."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sign that the terminal does not have must not end a run badly
    path = folder / "results.json"
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH_WITHOUT_TERMINAL
    if not path.is_file():
        console.print(f"nothing was measured; the run is in {folder}", markup=False)
        return
    results = json.loads(path.read_text(encoding="utf-8"))
    table = Table(title=escape(f"{results['name']}, {results['split']} split"), title_justify="left", box=SIMPLE)
    for heading in ("metric", "model", "95 % interval", "reference", "change"):
        is_name = heading == "metric"  # a long name may take two lines, but no figure is cut off
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for name, metric in results["metrics"].items():
        table.add_row(escape(name), *row(name, metric))
    console.print(table)
    for probe, details in results.get("details", {}).items():
        for note in details.get("notes", []):
            console.print(f"{probe}: {note}", markup=False, highlight=False)
    console.print(f"run: {folder}", markup=False, highlight=False)


def row(name: str, metric: dict[str, Any]) -> list[str]:
    """Model, interval, reference and their change (a ratio for counts and times), as text."""
    value, reference, interval = metric["value"], metric["reference"], metric["ci95"]
    last = name.rsplit("/", 1)[-1]
    is_count = last in COUNTS or last.startswith("bytes")
    between = "" if interval is None or None in interval else f"{interval[0]:.3f} to {interval[1]:.3f}"
    change = ""
    if value is not None and reference is not None:
        is_ratio = is_count or last.startswith("latency")
        change = f"× {value / reference:.3f}" if is_ratio and reference else f"{value - reference:+.4f}"
    return [show(value, is_count), between, show(reference, is_count), change]


def show(value: float | None, is_count: bool) -> str:
    """A figure as text: counts with a unit prefix, all else with four digits."""
    if value is None:
        return ""
    if not is_count:
        return f"{value:.4f}"
    for factor, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.2f}{prefix}"
    return f"{value:.0f}"
