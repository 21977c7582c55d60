"""What the W&B runs of a teacher and of its student hold, as the command line makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.tiny import NETWORK, TINY, write_tiny
from tests.command_line import SHORT, run
from tests.reporting.wandb_records import artifacts, config, is_used, of_kind, records

pytestmark = pytest.mark.slow

STUDENT: dict[str, Any] = {
    **TINY,
    "model": {
        "class_path": "lightning_modules.Distillation",
        "init_args": {
            "network": {"init_args": NETWORK},
            "teacher": {
                "class_path": "compresslens.networks.create_network",
                "init_args": {**NETWORK, "weights": "runs/tiny/latest", "replace_head": False},
            },
            "losses": [{"class_path": "compresslens.distillation.LogitKDLoss"}],
        },
    },
}


def test_a_student_is_described_measured_and_linked_to_its_teacher(workplace: Path, isolated_wandb: None) -> None:
    write_tiny(workplace)
    (workplace / "student.yaml").write_text(yaml.safe_dump(STUDENT))
    for name in ("tiny", "student"):
        options = ["--config", f"./{name}.yaml", "--runs_dir", "runs/study/seed0", "--requires", "none"]
        answer = run(*options, *SHORT, "--seed_everything=0")
        assert answer.status == 0, answer.err
        assert "W&B" not in answer.err
    teacher, student = (Path("runs/study/seed0", name, "latest") for name in ("tiny", "student"))
    found = records(student)

    described = of_kind(found, "run")[0]
    assert (described["run_group"], described["job_type"]) == ("study-student", "distillation")
    assert described["tags"] == ["distillation", NETWORK["architecture"], "FashionMNIST", "seed0", "study"]
    resolved = yaml.safe_load((student / "config.yaml").read_text())
    assert config(found)["model"]["init_args"]["teacher"] == resolved["model"]["init_args"]["teacher"]
    assert config(found)["seed_everything"] == 0

    history: dict[str, Any] = {}
    for record in of_kind(found, "history"):
        history |= record["item"]
    metrics = json.loads((student / "results.json").read_text())["metrics"]
    for name in ("accuracy/top1", "footprint/parameters", "robustness/cw_success"):
        assert history[name] == pytest.approx(metrics[name]["value"])

    kinds = {name: (record["type"], is_used(record)) for name, record in artifacts(found).items()}
    assert kinds == {
        "tiny-checkpoint": ("checkpoint", True),
        "student-checkpoint": ("checkpoint", False),
        "student-model": ("model", False),
        "student-samples": ("samples", False),
    }
    logged = artifacts(records(teacher))["tiny-checkpoint"]
    assert logged["digest"] == artifacts(found)["tiny-checkpoint"]["digest"]
    assert of_kind(records(teacher), "run")[0]["job_type"] == "training"
    assert of_kind(found, "exit") != []

    for path in (workplace / "runs").rglob("*"):
        if path.is_file() and path.is_relative_to(student.resolve() / "wandb"):
            assert str(workplace).encode() not in path.read_bytes(), path
