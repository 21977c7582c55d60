"""The W&B runs of the runs that a report is about."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compresslens import runs
from compresslens.errors import UserError
from compresslens.reporting.wandb_blocks import workspaces
from compresslens.study.reading import Run

PROJECT = "compresslens"  # of `OfflineFirstWandbLogger`, unless the config names another


def wandb_run(run: Run) -> dict[str, Any]:
    """Which W&B run a run has logged to.

    Returns:
        "model" and "seed"; "folder": name and time stamp of the run; "project" and "id", None if nothing was logged;
        "offline": the folders that `wandb sync` takes.
    """
    folder = run.folder / "wandb"
    parts = sorted(path for path in folder.glob("*run-*-*") if path.is_dir())
    id_file = folder / "run_id.txt"
    identity = parts[-1].name.rsplit("-", 1)[1] if parts else ""
    if id_file.is_file():
        identity = id_file.read_text(encoding="utf-8").strip()
    return {
        "model": run.name,
        "seed": run.seed,
        "folder": run.label,
        "project": _project(run.results["config"]),
        "id": identity or None,
        "offline": [runs.without_home(str(path)) for path in parts if path.name.startswith("offline-")],
    }


def _project(config: Any) -> str:
    """Of the W&B logger in a config."""
    loggers = ((config or {}).get("trainer") or {}).get("logger") or []
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and str(logger.get("class_path")).endswith("WandbLogger"):
            return (logger.get("init_args") or {}).get("project") or PROJECT
    return PROJECT


def refuse_missing(api: Any, entity: str, logged: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Refuses to go on without a run.

    Args:
        api: a `wandb.Api`.
        entity: whose projects the runs are in.
        logged: from `wandb_run`, with their "id".
        path: of the report that is to be published.

    Raises:
        UserError: the server does not have them all; it names those and how they get there.
    """
    missing = []
    for project in dict.fromkeys(run["project"] for run in logged):
        wanted = [run for run in logged if run["project"] == project]
        filters = {"name": {"$in": [run["id"] for run in wanted]}}  # W&B calls the id of a run its name
        try:
            known = {run.id for run in api.runs(f"{entity}/{project}", filters)}
        except ValueError as error:
            if "Could not find project" not in str(error):
                raise
            known = set()  # nothing was ever synced to it
        missing += [run for run in wanted if run["id"] not in known]
    if missing:
        named = ", ".join(f"{run['folder']} ({run['id']})" for run in missing)
        folders = " ".join(_in_shell(folder) for run in missing for folder in run["offline"])
        if not folders:
            raise UserError(f"W&B does not have {named}, of which nothing is left to sync: report without them")
        again = f"python report.py --publish {_in_shell(str(path))}"
        raise UserError(f"W&B does not have {named}: run `wandb sync {folders}`, then `{again}`")


def runset(entity: str, project: str, name: str, identities: list[str]) -> Any:
    """The runs of these ids, as a set that panels can be bound to."""
    filters = f"Metric('ID') in {identities!r}"
    return workspaces().Runset(entity=entity, project=project, name=name, filters=filters)


def _in_shell(path: str) -> str:
    """As an argument in a shell, which is to expand `~`."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)
