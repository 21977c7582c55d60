"""What train.py itself reads from the command line, and which folder a run gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compresslens import runs
from compresslens.cli.main import (
    Options,
    is_child_rank,
    latest_checkpoint,
    main,
    own_folder,
    parse,
    same_on_all_ranks,
)
from compresslens.errors import UserError
from tests.command_line import run

entry = sys.modules["compresslens.cli.main"]  # the package has the function under this name

pytestmark = pytest.mark.usefixtures("workplace")


# Reading --------------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    assert parse(["--config", "a"]) == Options("fit", "a", None, "runs", False, True, [])


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_a_subcommand_comes_first(subcommand: str) -> None:
    options = parse([subcommand, "--config", "a"])
    assert (options.subcommand, options.config, options.rest) == (subcommand, "a", [])


def test_own_options_in_both_spellings_and_the_rest_untouched() -> None:
    rest = ["--trainer.max_epochs=2", "--data.batch_size", "8", '--model.x={"a": "b=c"}', "--print_config"]
    expected = Options("fit", "a.yaml", "n", "r", True, False, rest)
    assert parse(["--config=a.yaml", "--name=n", "--runs_dir=r", "--resume", "--requires=none", *rest]) == expected
    assert (
        parse([*rest, "-c", "a.yaml", "--name", "n", "--runs_dir", "r", "--resume", "--requires", "none"]) == expected
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config"], "--config needs a value"),
        (["--config", "--resume"], "--config needs a value"),
        (["--config", "a", "--name"], "--name needs a value"),
        (["--config", "a", "--config", "b"], "give one --config"),
        (["--config", "a", "--requires", "teacher"], "--requires takes only 'none', got 'teacher'"),
        (["fti", "--config", "a"], "no subcommand 'fti'; choose fit, validate, test, predict"),
        (["test", "--config", "a", "--resume"], "--resume continues a fit; leave it out of test"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(arguments)
    assert message in run(*arguments).error


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_the_help_lists_the_shipped_configs(arguments: list[str], status: int) -> None:
    answer = run(*arguments)
    assert answer.status == status
    assert "\n  cifar10/distill_resnet18.yaml\n" in answer.out
    assert "base/" not in answer.out
    for option in ("--config", "--name", "--runs_dir", "--resume", "--requires", "--ckpt_path"):
        assert option in answer.out


def test_no_config_is_said() -> None:
    assert run("fit", "--trainer.max_epochs=1").error.startswith("--config is missing")


def test_quick_answers_need_no_heavy_import(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "pytorch_lightning", "jsonargparse", "compresslens.cli.lightning_cli"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    assert main(["--help"]) == 0
    assert "did you mean" in run("--config", "distil_resnet18.yaml").error
    assert "subcommand" in run("trian").error


def test_an_error_is_one_line_whatever_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: Options) -> int:
        raise UserError("two\n   lines")

    monkeypatch.setattr(entry, "run", fail)
    assert run("--config", "a").error == "two lines"


def test_ctrl_c_names_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(options: Options) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "run", interrupt)
    answer = run("--config", "a")
    assert (answer.status, answer.err) == (130, "interrupted; `--resume` continues from the last checkpoint\n")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run("--config", "a").err == ""  # rank zero has said it


# Ranks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "child"),
    [
        ({}, False),
        ({"LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, True),  # torchrun, second node
        ({"RANK": "0", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, True),
    ],
)
def test_who_prepares_the_run(environment: dict[str, str], child: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_child_rank() is child


def test_a_child_takes_the_folder_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose() -> Path:
        return Path("chosen")

    monkeypatch.setenv(runs.RUN_DIRECTORY_VARIABLE, "given")
    assert same_on_all_ranks(choose) == Path("chosen")  # left over from another run
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert same_on_all_ranks(choose) == Path("given")


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_new_run_is_locked_and_a_resumed_one_is_the_unfinished(workplace: Path) -> None:
    folder = own_folder(workplace, "a", resume=False)
    (folder / "config.yaml").touch()
    with pytest.raises(UserError, match="in use"):
        own_folder(workplace, "a", resume=True)
    runs.release(folder)
    assert own_folder(workplace, "a", resume=True) == folder
    runs.release(folder)


def test_evaluations_take_the_best_checkpoint_of_the_latest_run(workplace: Path) -> None:
    assert latest_checkpoint(workplace, "a") == []
    folder = runs.create_run(workplace, "a")
    runs.finish(folder)
    with pytest.raises(UserError, match=r"best\.ckpt is missing; name a checkpoint with --ckpt_path"):
        latest_checkpoint(workplace, "a")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").touch()
    assert latest_checkpoint(workplace, "a") == [f"--ckpt_path={workplace}/a/latest/checkpoints/best.ckpt"]
