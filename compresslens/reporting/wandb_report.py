"""A report on W&B: saved as a file first, published from that file when there is a login."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from compresslens import runs
from compresslens.errors import UserError
from compresslens.reporting.report_parts import Parts
from compresslens.reporting.wandb_blocks import INSTALL, blocks, workspaces
from compresslens.reporting.wandb_runs import refuse_missing, runset, wandb_run
from compresslens.reporting.wandb_spec import SCHEMA, specification
from compresslens.reporting.wandb_start import SETTINGS, logged_in, one_line
from compresslens.study.models import Model

FILE = "wandb_report.json"
PICTURES = "wandb_report"
LONGEST_TITLE = 128  # that W&B takes


def write_specification(
    output: Path, content: dict[str, Any], models: Sequence[Model], title: str, parts: Parts
) -> Path:
    """Writes `wandb_report.json` and the pictures that it names into the folder of a report.

    Args:
        output: folder that holds the report's `index.html` and `report.csv` already.
        content: from `compresslens.study.summary`.
        models: the same ones.
        title: of the report.
        parts: of its page.

    Returns:
        The file.
    """
    media: list[dict[str, str]] = []
    for figure in parts.figures:
        number = 1 + sum(item["place"] == figure["place"] for item in media)
        name = f"{figure['place']}_{number}"
        file = f"{PICTURES}/{name}.png"
        data = base64.b64decode(figure["address"].partition(",")[2])
        runs.write_atomically(output / file, partial(_write_bytes, data))
        about = {key: figure[key] for key in ("place", "alt", "caption")}
        media.append({"key": f"report/{name}", "kind": "image", "file": file, **about})
    whole = {"place": "page", "alt": "the report", "caption": "The same page as in the folder of the report."}
    table = {"place": "table", "alt": "all figures", "caption": ""}
    media.append({"key": "report/page", "kind": "html", "file": "index.html", **whole})
    media.append({"key": "report/table", "kind": "table", "file": "report.csv", **table})
    for item in media:
        item["sha256"] = _digest(output / item["file"])
    found = [wandb_run(run) for model in models for run in model.runs]
    spec = specification(content, title, found, media, parts.classes)
    runs.write_json(output / FILE, spec)
    return output / FILE


def read_specification(path: Path) -> dict[str, Any]:
    """A report that was saved for publication.

    Raises:
        UserError: it cannot be read, was written by another version, or the report beside it is gone or another.
    """
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; `python report.py RUN … --wandb` writes it") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {one_line(error)}") from None
    schema = spec.get("schema") if isinstance(spec, dict) else None
    if schema != SCHEMA or "blocks" not in spec:
        raise UserError(
            f"{path} is no W&B report of this version (schema {schema!r}, not {SCHEMA}): write it anew with --wandb"
        )
    try:
        blocks(spec)
        [spec[key] for key in ("title", "description", "project")]
        [run[key] for run in spec["runs"] for key in ("id", "project", "folder", "offline")]
        files = {path.parent / item["file"]: item["sha256"] for item in spec["media"]}
        [item[key] for item in spec["media"] for key in ("key", "kind", "caption")]
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): write it anew with --wandb") from None
    for file, digest in files.items():
        if not file.is_file() or _digest(file) != digest:
            raise UserError(f"{file} is not what it was when {path} was written: write both anew with --wandb")
    return spec


def why_not_online() -> str | None:
    """Why nothing can be published now; None if it can."""
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode in {"offline", "dryrun", "disabled"}:
        return f"WANDB_MODE is {mode}"
    try:
        return None if logged_in() else "not logged in to W&B (`wandb login`)"
    except ModuleNotFoundError:
        return f"wandb is not installed ({INSTALL})"
    except Exception as error:
        return f"W&B's login does not work ({one_line(error)})"


def publish(path: Path) -> str:
    """Publishes a report that was saved; returns its address.

    Raises:
        UserError: there is no login, a run that it is about is not on the server, or W&B did not take it.
    """
    workspaces()
    spec = read_specification(path)
    if (reason := why_not_online()) is not None:
        raise UserError(f"cannot publish {path}: {reason}")
    try:
        return _publish(spec, path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"W&B did not take the report: {one_line(error)}") from error


def _publish(spec: Mapping[str, Any], path: Path) -> str:
    import wandb

    api: Any = wandb.Api()
    entity = api.settings["entity"] or api.default_entity
    logged = [run for run in spec["runs"] if run["id"] is not None]
    refuse_missing(api, entity, logged, path)
    title = spec["title"] if len(spec["title"]) <= LONGEST_TITLE else f"{spec['title'][: LONGEST_TITLE - 1]}…"
    about = {"title": spec["title"], "runs": [run["id"] for run in logged]}
    place = {"entity": entity, "project": spec["project"]}
    settings = wandb.Settings(**SETTINGS, quiet=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        wandb.init(
            **place, mode="online", name="report", job_type="report", dir=scratch, config=about, settings=settings
        ) as run,
    ):
        run.log({item["key"]: _media(item, path.parent) for item in spec["media"]})
    wr = workspaces()
    projects = dict.fromkeys(of_run["project"] for of_run in logged)
    ids = {project: [of_run["id"] for of_run in logged if of_run["project"] == project] for project in projects}
    models = [runset(entity, project, "models", of_project) for project, of_project in ids.items()]
    content = blocks(spec, models, [runset(entity, spec["project"], "report", [run.id])])
    report = wr.Report(**place, title=title, description=spec["description"], blocks=content, width="fluid")
    report.save()
    return str(report.url)


def _media(item: Mapping[str, str], folder: Path) -> Any:
    import pandas as pd
    import wandb

    file = str(folder / item["file"])
    if item["kind"] == "image":
        return wandb.Image(file, caption=item["caption"])
    if item["kind"] == "html":
        return wandb.Html(file, inject=False)
    return wandb.Table(dataframe=pd.read_csv(file))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_bytes(data: bytes, path: Path) -> None:
    path.write_bytes(data)
