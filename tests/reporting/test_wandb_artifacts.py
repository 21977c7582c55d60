from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import wandb
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from compresslens import runs
from compresslens.errors import UserError
from compresslens.reporting.wandb_artifacts import _named_from_here, _stage
from compresslens.reporting.wandb_logger import OfflineFirstWandbLogger
from tests.reporting.wandb_records import WANDB, artifacts, is_used, of_kind, records
from tests.reporting.wandb_server import Server

STAMP = "20260101-120000"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, isolated_wandb: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which is the working folder."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def make_run(name: str, weights: str | None = None) -> Path:
    """A finished run with all that is logged, and a few things that are not."""
    folder = Path("runs", name, STAMP)
    for path in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "model/model.onnx", "model/int8/model.onnx"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"{path} of {name}")
    (folder / "samples.parquet").write_text(f"samples of {name}")
    (folder / "figures").mkdir()
    for figure in ("tsne.html", "tsne.png"):
        (folder / "figures" / figure).write_text(f"{figure} of {name}")
    arguments = (
        f"{{network: {{init_args: {{architecture: resnet18}}}}, teacher: {{init_args: {{weights: {weights}}}}}}}"
    )
    (folder / "config.yaml").write_text(
        f"model: {{class_path: lightning_modules.Distillation, init_args: {arguments}}}"
    )
    (folder.parent / "latest").symlink_to(STAMP)
    return folder


def log(folder: Path, **options: Any) -> OfflineFirstWandbLogger:
    """Logs a run from its start to its end."""
    logger = OfflineFirstWandbLogger(save_dir=str(folder), **options)
    logger.log_metrics({"x": 1.0}, 1)
    logger.log_run()
    logger.log_metrics({"x": 2.0}, 2)
    logger.finish()
    return logger


def entries(artifact: dict[str, Any]) -> dict[str, str]:
    """Local paths by path within the artifact."""
    return {entry["path"]: entry["local_path"] for entry in artifact["manifest"]["contents"]}


def test_outputs_are_logged_without_a_copy_or_an_absolute_path(home: Path, tmp_path: Path) -> None:
    folder = make_run("student")
    log(folder)
    found = artifacts(records(folder))
    assert {name: record["type"] for name, record in found.items()} == {
        "student-checkpoint": "checkpoint",
        "student-model": "model",
        "student-samples": "samples",
        "student-pages": "pages",
    }
    assert {tuple(entries(record)) for record in found.values()} == {
        ("best.ckpt",),
        ("int8/model.onnx", "model.onnx"),
        ("samples.parquet",),
        ("tsne.html",),
    }
    sources = {"best.ckpt": folder / "checkpoints/best.ckpt", "samples.parquet": folder / "samples.parquet"}
    sources["tsne.html"] = folder / "figures/tsne.html"
    for record in found.values():
        assert not is_used(record)
        assert set(record["aliases"]) == {"latest", STAMP}
        for inside, local in entries(record).items():
            assert local.startswith(f"{folder}/wandb/artifacts/")
            assert Path(local).samefile(sources.get(inside, folder / "model" / inside)), "a link, no copy"
    assert [path for path in (tmp_path / "wandb").rglob("artifacts/**/*") if path.is_file()] == [], "nothing is staged"
    for path in (folder / "wandb").rglob("run-*"):
        assert path.is_dir() or str(home).encode() not in path.read_bytes()


def test_a_student_uses_the_checkpoint_that_its_teacher_has_logged() -> None:
    teacher, student = make_run("teacher"), make_run("student", "runs/teacher/latest")
    log(teacher)
    log(student)
    logged, used = artifacts(records(teacher))["teacher-checkpoint"], artifacts(records(student))["teacher-checkpoint"]
    assert is_used(used)
    assert not is_used(logged)
    for key in ("name", "type", "digest", "project"):
        assert used[key] == logged[key], "the server takes this for the same version"
    assert set(used["aliases"]) == {"latest", STAMP}
    assert Path(entries(used)["best.ckpt"]).samefile(teacher / "checkpoints/best.ckpt")
    assert [name for name, record in artifacts(records(student)).items() if is_used(record)] == ["teacher-checkpoint"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("none", set()),
        ("samples", {"student-samples", "student-pages"}),
        ("all", {"student-samples", "student-pages", "student-checkpoint", "teacher-checkpoint"}),
    ],
)
def test_the_user_chooses_and_what_is_missing_is_left_out(choice: str, names: set[str]) -> None:
    make_run("teacher")
    folder = make_run("student", "runs/teacher/latest")
    (folder / "model").rename(folder / "none")
    log(folder, artifacts=choice)
    assert set(artifacts(records(folder))) == names
    with pytest.raises(UserError, match="artifacts is 'some'; it must be one of none, samples, all"):
        OfflineFirstWandbLogger(artifacts="some")  # type: ignore[arg-type]


def test_files_are_copied_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    file, staged = tmp_path / "best.ckpt", tmp_path / "artifacts" / "best.ckpt"
    file.write_text("content")
    for _ in range(2):
        _stage(file, staged)
        assert staged.read_text() == "content"
        assert not staged.samefile(file)


def test_what_is_replaced_later_stays_as_it_was_logged(tmp_path: Path) -> None:
    file, staged = tmp_path / "best.ckpt", tmp_path / "artifacts" / "best.ckpt"
    file.write_text("content")
    for _ in range(2):
        _stage(file, staged)
        assert staged.samefile(file)
    runs.write_atomically(file, partial(runs.write_text, "another"))
    assert staged.read_text() == "content"
    staged.unlink()
    assert file.read_text() == "another"


@pytest.mark.parametrize("broken", ["wandb_artifacts._stage", "wandb_logger.log_outputs"])
def test_a_failure_costs_one_warning_and_only_the_artifacts(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("no space left\non device")

    monkeypatch.setattr(f"compresslens.reporting.{broken}", fail)
    make_run("teacher")
    folder = make_run("student", "runs/teacher/latest")
    with pytest.warns(UserWarning, match="no artifacts are logged to W&B: OSError: no space left on device") as caught:
        log(folder)
    assert len(caught) == 1
    assert [record["item"]["x"] for record in of_kind(records(folder), "history")] == [1, 2]


def test_the_home_folder_is_not_named(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "runs" / "a"
    assert _named_from_here(path) == "runs/a"
    (home / "code").mkdir()
    monkeypatch.chdir(home / "code")
    assert _named_from_here(path) == "../runs/a"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"paths in ~/runs would name the home folder; start from there"):
        _named_from_here(path)
    assert _named_from_here(tmp_path.parent / "elsewhere") == "../elsewhere"


def test_other_ranks_log_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run("student")
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    log(folder)
    assert not (folder / "wandb").exists()


def test_a_logger_that_was_not_used_starts_no_run_for_artifacts() -> None:
    folder = make_run("student")
    OfflineFirstWandbLogger(save_dir=str(folder)).log_run()
    assert not (folder / "wandb").exists()


def test_a_synchronized_run_has_its_artifacts_and_lineage_and_keeps_its_files() -> None:
    teacher, student = make_run("teacher"), make_run("student", "runs/teacher/latest")
    for folder in (teacher, student):
        log(folder)
    ids = {folder.parent.name: (folder / "wandb/run_id.txt").read_text() for folder in (teacher, student)}
    server = Server()
    environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0123456789" * 4}
    for folder in (teacher, student):
        command = [WANDB, "sync", str(next(folder.glob("wandb/offline-run-*")))]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    server.shutdown()

    found = {name: artifact for (_, name, _), artifact in server.artifacts.items()}
    assert len(found) == len(server.artifacts) == 8
    assert {artifact["state"] for artifact in found.values()} == {"COMMITTED"}
    for name, artifact in found.items():
        assert artifact["made_by"] == ids[name.partition("-")[0]]
        assert artifact["used_by"] == ([ids["student"]] if name == "teacher-checkpoint" else [])
    content = {path: text for path, text in server.uploads.items() if path.startswith("/artifact/")}
    assert content[f"/artifact/{found['teacher-checkpoint']['id']}/best.ckpt"] == b"checkpoints/best.ckpt of teacher"
    assert len(content) == 10
    for text in server.uploads.values():
        assert str(Path.home()).encode() not in text
    for folder in (teacher, student):
        assert (folder / "checkpoints/best.ckpt").read_text() == f"checkpoints/best.ckpt of {folder.parent.name}"


def test_wandb_still_does_what_is_relied_on(home: Path) -> None:
    """Offline, `run.use_artifact` refuses; should that change, the private call can go."""
    run = wandb.init(mode="offline", dir=str(home), settings=wandb.Settings(silent=True))
    with pytest.raises(TypeError, match="offline"):
        run.use_artifact(wandb.Artifact("a", type="b"))
    run.finish()
