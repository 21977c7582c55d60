"""The blocks of a W&B report, from our specification of it; no login and no network are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compresslens.errors import UserError
from compresslens.reporting.model_card import plain

GRID = 24  # columns of a grid of panels on W&B
HEIGHTS = {1: 16, 2: 11, 3: 7}  # of a panel, by how many stand side by side
INSTALL = '`pip install "compresslens[wandb]"`'


def blocks(spec: Mapping[str, Any], models: Sequence[Any] = (), report: Sequence[Any] = ()) -> list[Any]:
    """The report as blocks of wandb_workspaces.

    Args:
        spec: from `compresslens.reporting.wandb_spec.specification`.
        models: run sets of the models.
        report: run sets of the run that the report's own pictures are logged to. Without run sets panels are bound to
            none; this needs no login.
    """
    wr = workspaces()
    found: list[Any] = []
    for block in spec["blocks"]:
        match block["kind"]:
            case "heading":
                found.append(wr.H2(block["text"]))
            case "markdown":
                found.append(wr.MarkdownBlock(block["markdown"]))
            case "table":
                found.append(wr.MarkdownBlock(markdown_table(block["columns"], block["rows"])))
            case "panels":
                bound = {"models": models, "report": report}[block["runs"]]
                panels = [panel(item, place, block["columns"]) for place, item in enumerate(block["panels"])]
                found.append(wr.PanelGrid(runsets=list(bound) or [wr.Runset()], panels=panels))
            case kind:
                raise KeyError(kind)
    return found


def panel(item: Mapping[str, Any], place: int, columns: int) -> Any:
    """A panel of wandb_workspaces.

    Args:
        item: a panel of the specification.
        place: its number in its grid.
        columns: how many stand side by side.
    """
    wr = workspaces()
    height, width = HEIGHTS[columns], GRID // columns
    row, column = divmod(place, columns)
    kinds = {"bar": wr.BarPlot, "scatter": wr.ScatterPlot, "line": wr.LinePlot, "media": wr.MediaBrowser}
    options = {key: value for key, value in item.items() if key not in {"kind", "keys"}}
    if item["kind"] == "media":
        options |= {"media_keys": item["keys"], "num_columns": 1}
    return kinds[item["kind"]](**options, layout=wr.Layout(x=column * width, y=row * height, w=width, h=height))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, from headings that are plain text and cells that are Markdown."""
    lines = [[plain(column) for column in columns], ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def workspaces() -> Any:
    """The package that builds reports.

    Raises:
        UserError: it is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as found
    except ImportError as error:
        raise UserError(f"publishing needs wandb-workspaces ({error}): {INSTALL}") from None
    return found
