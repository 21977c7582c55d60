"""Reads offline W&B runs back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WANDB = str(Path(sys.executable).with_name("wandb"))


def records(folder: Path) -> list[dict[str, Any]]:
    """All records of all parts of the run, oldest first."""
    parts = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    command = [WANDB, "leet", "inspect", "--json"]
    texts = [subprocess.run([*command, str(part)], check=True, capture_output=True, text=True).stdout for part in parts]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The records of a kind."""
    return [record[kind] for record in found if record["type"] == kind]


def config(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The run's configuration."""
    return {key: value for record in of_kind(found, "config") for key, value in record["update"].items()}


def artifacts(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The artifacts that the run has logged or used, by name."""
    return {record["name"]: record for record in of_kind(found, "artifact")}


def is_used(artifact: dict[str, Any]) -> bool:
    """Whether the run has declared the artifact as its input, rather than logged it as its output."""
    flags = {artifact.get("use_after_commit", False), artifact.get("user_created", False)}
    assert len(flags) == 1, artifact
    return flags.pop()
