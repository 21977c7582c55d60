"""Every shipped W&B sweep: its commands are made as W&B's agent makes them, and read by train.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from compresslens.cli.requirements import ENTRY_POINT, undistributed_environment
from compresslens.reporting import OfflineFirstWandbLogger
from tests.command_line import run

FILES = sorted((ENTRY_POINT.parent / "sweeps").glob("*.yaml"))


def commands(sweep: dict[str, Any]) -> list[tuple[list[str], dict[str, Any]]]:
    """The command lines with the first and with the last values of all parameters, and these values."""
    ends = {name: p.get("values") or [p["min"], p["max"]] for name, p in sweep["parameters"].items()}
    found = []
    for end in (0, -1):
        values = {name: options[end] for name, options in ends.items()}
        macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
        macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
        line: list[str] = []
        for part in create_sweep_command(sweep["command"]):
            line += macros[part[2:-1]] if part.startswith("${") else [part]
        found.append((line, values))
    return found


def value_at(content: Any, key: str) -> Any:
    """What stands in a resolved config at a key of the command line; in a list, in its last entry."""
    for part in key.split("."):
        content = content[-1] if isinstance(content, list) else content
        content = content[part] if part in content else content["init_args"][part]
    return content


def test_there_are_some() -> None:
    assert len(FILES) == 3


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_train_py_takes_its_values(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    for line, values in commands(sweep):
        assert line[:3] == ["/usr/bin/env", "python", ENTRY_POINT.name]
        assert f"--name=sweep_{path.stem}" in line, "its runs are no runs of the experiment"
        answer = run(*line[3:], "--print_config")
        assert answer.status == 0, answer.err
        config = yaml.safe_load(answer.out)
        assert {name: value_at(config, name) for name in values} == values
        assert value_at(config, "trainer.logger.online") is True
        # Without this metric the callback would end the run.
        (best,) = (c for c in config["trainer"]["callbacks"] if c["class_path"] == "callbacks.BestCheckpoint")
        assert sweep["metric"] == {"name": best["init_args"]["monitor"], "goal": f"{best['init_args']['mode']}imize"}


def test_a_run_of_an_agent_is_the_one_that_it_waits_for(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    for sweep, expected in ((None, False), ("s1", True)):
        if sweep:
            monkeypatch.setenv("WANDB_SWEEP_ID", sweep)
        logger = OfflineFirstWandbLogger(save_dir=str(workplace / str(sweep)))
        assert (logger.experiment.id == "fromagent") is expected
        logger.finish()
    assert not {"WANDB_RUN_ID", "WANDB_SWEEP_ID"} & set(undistributed_environment()), "a teacher is another run"
