import os
import pickle
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import wandb
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from compresslens.reporting.wandb_logger import OfflineFirstWandbLogger
from compresslens.reporting.wandb_start import NoExperiment
from compresslens.runs import RUN_DIRECTORY_VARIABLE
from tests.reporting.conftest import HOST
from tests.reporting.wandb_records import config, of_kind, records

T = TypeVar("T")

KEY = "0123456789abcdef0123456789abcdef01234567"
pytestmark = pytest.mark.usefixtures("isolated_wandb")


def test_an_offline_run_can_be_read_back_and_tells_nothing_about_the_machine(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = OfflineFirstWandbLogger(save_dir=str(run_folder), group="cifar10", job_type="distill", tags=["a", "b"])
    logger.log_hyperparams({"lr": 0.1, "data": {"root": str(Path.home() / "data")}})
    print(Path.home(), HOST)
    for step in range(3):
        logger.log_metrics({"train/loss": 1 / (step + 1), "epoch": 0}, step)
    logger.log_metrics({"grid": wandb.Image(np.zeros((4, 4, 3), np.uint8))}, 2)
    logger.log_image("grids", [np.zeros((4, 5, 3), np.uint8)], 2)
    logger.finalize("success")
    logger.log_metrics({"test/top1": 0.5}, 3)
    logger.finish()

    found = records(run_folder)
    run = of_kind(found, "run")[0]
    assert run["project"] == "compresslens"
    assert run["display_name"] == "distill/20260101-120000"
    assert (run["run_group"], run["job_type"], run["tags"]) == ("cifar10", "distill", ["a", "b"])
    assert run["run_id"] == (run_folder / "wandb" / "run_id.txt").read_text()
    assert config(found) == {"lr": 0.1, "data": {"root": "~/data"}}
    history = [record["item"] for record in of_kind(found, "history")]
    assert [item.get("train/loss") for item in history[:3]] == [1, 1 / 2, 1 / 3]
    assert [item["trainer/global_step"] for item in history] == [0, 1, 2, 2, 2, 3]
    assert history[5]["test/top1"] == 0.5
    assert len(list(run_folder.glob("wandb/*/files/media/images/*.png"))) == 2

    for path in run_folder.rglob("*"):
        assert not path.is_symlink()
        content = path.read_bytes() if path.is_file() else b""
        for secret in (str(Path.home()), str(tmp_path), HOST, KEY, sys.executable):
            assert secret.encode() not in content, path


def test_a_page_is_logged(run_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "tsne.html"
    page.write_text("<!DOCTYPE html><title>é</title><script>1 < 2</script>", encoding="utf-8")
    logger = OfflineFirstWandbLogger(save_dir=str(run_folder))
    logger.log_metrics({"x": 1.0}, 3)
    logger.log_page("tsne_page", page)
    logger.finish()
    history = [record["item"] for record in of_kind(records(run_folder), "history")]
    (logged,) = [item for item in history if "tsne_page._type" in item]
    assert logged["tsne_page._type"] == "html-file"
    assert logged["trainer/global_step"] == 3
    (kept,) = run_folder.glob(f"wandb/*/files/{logged['tsne_page.path']}")
    assert kept.read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), "and nothing injected"


def test_a_continued_run_keeps_its_id_and_never_joins_another_one(run_folder: Path) -> None:
    for step in range(2):
        logger = OfflineFirstWandbLogger(save_dir=str(run_folder))
        logger.log_metrics({"x": step}, step)
        assert logger.version == (run_folder / "wandb" / "run_id.txt").read_text()
        logger.finish()
        # two parts that start within the same second would get the same folder
        (part,) = run_folder.glob("wandb/offline-run-2*")
        part.rename(part.with_name(f"offline-run-part{step}"))
    found = records(run_folder)
    assert [record["item"]["x"] for record in of_kind(found, "history")] == [0, 1]
    assert len({record["run_id"] for record in of_kind(found, "run")}) == 1

    other = run_folder.with_name("other")
    first, second = OfflineFirstWandbLogger(save_dir=str(run_folder)), OfflineFirstWandbLogger(save_dir=str(other))
    assert first.experiment.id != second.experiment.id
    first.finish()
    second.finish()


def test_the_folder_is_that_of_the_current_run(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = OfflineFirstWandbLogger()
    monkeypatch.setenv(RUN_DIRECTORY_VARIABLE, str(run_folder))
    assert logger.save_dir == str(run_folder)


# When to be online ----------------------------------------------------------------------------------------------------


class FakeRun:
    """Stands for what `wandb.init` returns."""

    id = "fake"
    settings = type("Settings", (), {"sync_dir": "nowhere"})()

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every `wandb.init`, which starts nothing."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> FakeRun:
        calls.append(options)
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    return calls


@pytest.mark.parametrize("source", ["environment", "netrc"])
def test_online_if_asked_and_logged_in(
    run_folder: Path, starts: list[dict[str, Any]], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        Path(os.environ["NETRC"]).write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
        Path(os.environ["NETRC"]).chmod(0o600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(OfflineFirstWandbLogger(online=True, save_dir=str(run_folder)).experiment, FakeRun)
        assert isinstance(OfflineFirstWandbLogger(online=False, save_dir=str(run_folder)).experiment, FakeRun)
    assert [call["mode"] for call in starts] == ["online", "offline"]
    assert starts[0]["resume"] == "allow"
    assert starts[0]["id"] == starts[1]["id"]


@pytest.mark.parametrize(("key", "message"), [("", "no W&B API key"), ("nonsense", "API_KEY invalid")])
def test_offline_with_a_warning_without_a_valid_api_key(
    run_folder: Path, starts: list[dict[str, Any]], key: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    logger = OfflineFirstWandbLogger(online=True, save_dir=str(run_folder))
    assert_one_warning(lambda: [logger.log_metrics({"x": 1.0}, step) for step in range(2)], f"{message}.*stays offline")
    assert [call["mode"] for call in starts] == ["offline"]


def test_older_versions_of_wandb_are_asked_in_their_way(
    run_folder: Path, starts: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.wbauth", None)
    monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key=KEY))
    OfflineFirstWandbLogger(online=True, save_dir=str(run_folder)).log_metrics({"x": 1.0}, 0)
    assert [call["mode"] for call in starts] == ["online"]


def test_offline_if_the_environment_says_so(
    run_folder: Path, starts: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    OfflineFirstWandbLogger(online=True, save_dir=str(run_folder)).log_metrics({"x": 1.0}, 0)
    assert [call["mode"] for call in starts] == ["offline"]


# Whatever goes wrong --------------------------------------------------------------------------------------------------


def use_in_every_way(logger: OfflineFirstWandbLogger) -> None:
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"x": 1.0}, 0)
    logger.log_metrics({"x": 2.0}, 1)
    logger.experiment.log({"x": 1})
    logger.experiment.config.update({"a": 2})
    logger.experiment.summary["a"] = 2
    logger.watch(None)
    logger.log_image("figure", ["figure.png"])
    logger.log_table("table", columns=["a"], data=[["b"]])
    logger.log_text("text", columns=["a"], data=[["b"]])
    logger.save()
    logger.finalize("success")
    pickle.loads(pickle.dumps(logger))
    logger.finish()


def assert_one_warning(action: Callable[[], T], pattern: str) -> T:
    with pytest.warns(UserWarning, match=pattern) as caught:
        result = action()
    assert len([w for w in caught if issubclass(w.category, UserWarning)]) == 1
    return result


def used(run_folder: Path) -> OfflineFirstWandbLogger:
    logger = OfflineFirstWandbLogger(save_dir=str(run_folder))
    use_in_every_way(logger)
    return logger


def raising(*args: Any, **kwargs: Any) -> Any:
    raise wandb.errors.CommError("no route\nto host")


def test_a_failing_init_costs_one_warning(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", raising)
    logger = OfflineFirstWandbLogger(save_dir=str(run_folder))
    assert_one_warning(lambda: use_in_every_way(logger), "goes on without it: CommError: no route to host")
    assert isinstance(logger.experiment, NoExperiment)


def test_a_failing_log_costs_one_warning(
    run_folder: Path, starts: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = OfflineFirstWandbLogger(save_dir=str(run_folder))
    monkeypatch.setattr(FakeRun, "log", raising)
    assert_one_warning(lambda: [logger.log_metrics({"x": 1.0}, step) for step in range(3)], "no route to host")
    assert isinstance(logger.experiment, NoExperiment)
    assert logger.version is None


def test_an_unreachable_server_leaves_an_offline_run(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    original = wandb.init
    monkeypatch.setattr(
        wandb, "init", lambda mode, **rest: raising() if mode == "online" else original(mode=mode, **rest)
    )
    logger = OfflineFirstWandbLogger(online=True, save_dir=str(run_folder))
    assert_one_warning(lambda: logger.log_metrics({"x": 1.0}, 0), "cannot be reached, the run stays offline")
    logger.finish()
    assert of_kind(records(run_folder), "history")[0]["item"]["x"] == 1


def test_a_read_only_folder_costs_one_warning(run_folder: Path) -> None:
    (run_folder / "wandb").write_text("a file where a folder should be")
    logger = assert_one_warning(lambda: used(run_folder), "goes on without it")
    assert isinstance(logger.experiment, NoExperiment)


def test_disabled_by_the_environment(
    run_folder: Path, starts: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert_one_warning(
        lambda: use_in_every_way(OfflineFirstWandbLogger(save_dir=str(run_folder))), "WANDB_MODE=disabled"
    )
    assert starts == []
    assert list(run_folder.iterdir()) == []


def test_without_wandb(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger = assert_one_warning(lambda: used(run_folder), "goes on without it")
    assert isinstance(logger.experiment, NoExperiment)


def test_with_a_broken_wandb(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger = assert_one_warning(lambda: used(run_folder), "goes on without it")
    assert isinstance(logger.experiment, NoExperiment)


def test_other_ranks_start_nothing(
    run_folder: Path, starts: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use_rank = OfflineFirstWandbLogger(online=True, save_dir=str(run_folder))
        use_rank.log_hyperparams({"a": 1})
        use_rank.log_metrics({"x": 1.0}, 0)
        use_rank.experiment.log({"x": 1})
        use_rank.finish()
    assert starts == []
    assert list(run_folder.iterdir()) == []


def test_wandb_is_imported_only_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes every import fail
    module = runpy.run_path(str(Path(sys.modules[OfflineFirstWandbLogger.__module__].__file__ or "")))
    logger = module["OfflineFirstWandbLogger"]()
    assert isinstance(logger, module["WandbLogger"])
    assert sys.modules["wandb"] is None
