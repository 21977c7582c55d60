"""Run folders: making, finding, finishing, locking, discarding."""

from __future__ import annotations

import json
import multiprocessing
import os
from datetime import datetime
from pathlib import Path

import pytest

from compresslens import runs
from compresslens.errors import UserError


def make(root: Path, name: str, stamp: str, finished: bool = False) -> Path:
    """A run folder as a past run has left it."""
    folder = root / name / stamp
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    if finished:
        (folder / runs.FINISHED_FILE).touch()
    return folder


# Making ---------------------------------------------------------------------------------------------------------------


def test_a_run_folder_is_named_by_the_time(tmp_path: Path) -> None:
    before = datetime.now().replace(microsecond=0)
    folder = runs.create_run(tmp_path / "deep" / "runs", "a")
    assert folder.parent == tmp_path / "deep" / "runs" / "a"
    assert before <= datetime.strptime(folder.name, "%Y%m%d-%H%M%S") <= datetime.now()
    assert list(folder.iterdir()) == []


def test_runs_of_the_same_second_get_folders_of_their_own_in_order(tmp_path: Path) -> None:
    folders = [runs.create_run(tmp_path, "a") for _ in range(12)]
    assert len(set(folders)) == 12


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot create the run folder .*file/a/.*: Not a directory; .*--runs_dir"):
        runs.create_run(tmp_path / "file", "a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "b").touch()
    with pytest.raises(UserError, match=r"cannot create .*run folder .*--runs_dir"):
        runs.create_run(tmp_path / "runs", "b")


# Finding --------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_oldest_first_without_links_and_strays(tmp_path: Path) -> None:
    second, first = (make(tmp_path, "a", stamp) for stamp in ("20260102-000000", "20260101-000000"))
    (tmp_path / "a" / "20260103-000000").mkdir()  # nothing was written into it
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / "latest").symlink_to(second.name)
    assert runs.runs_of(tmp_path, "a") == [first, second]
    assert runs.runs_of(tmp_path, "b") == []


def test_the_newest_unfinished_run_is_resumed(tmp_path: Path) -> None:
    make(tmp_path, "a", "20260101-000000")
    wanted = make(tmp_path, "a", "20260102-000000")
    make(tmp_path, "a", "20260103-000000", finished=True)
    assert runs.unfinished_run(tmp_path, "a") == wanted


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    make(tmp_path, "a", "20260103-000000", finished=True)
    for name in ("a", "b"):
        with pytest.raises(UserError, match=f"nothing to resume: no unfinished run in .*{name}"):
            runs.unfinished_run(tmp_path, name)


# Finishing ------------------------------------------------------------------------------------------------------------


def test_latest_points_to_the_newest_finished_run(tmp_path: Path) -> None:
    old, new, newest = (make(tmp_path, "a", f"2026010{day}-000000") for day in (1, 2, 3))
    assert runs.latest_run(tmp_path, "a") is None
    runs.finish(new)
    assert runs.latest_run(tmp_path, "a") == tmp_path / "a" / "latest"
    runs.finish(old)  # it took longer
    assert (tmp_path / "a" / "latest").resolve() == new
    runs.finish(newest)
    assert (tmp_path / "a" / "latest").resolve() == newest
    assert os.readlink(tmp_path / "a" / "latest") == newest.name  # relative: the folder can be moved
    assert sorted(path.name for path in (tmp_path / "a").iterdir())[-1] == "latest"


def test_a_latest_that_points_nowhere_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "latest").symlink_to("20990101-000000")
    assert runs.latest_run(tmp_path, "a") is None
    run = make(tmp_path, "a", "20260101-000000")
    runs.finish(run)
    assert (tmp_path / "a" / "latest").resolve() == run


@pytest.mark.parametrize("entries", [[], [".lock", "config.yaml"], ["config.yaml", "wandb/offline-run-1"]])
def test_a_run_in_which_nothing_happened_is_discarded(entries: list[str], tmp_path: Path) -> None:
    folder = runs.create_run(tmp_path, "a")
    for entry in entries:
        (folder / entry).mkdir(parents=True) if "/" in entry else (folder / entry).touch()
    runs.discard_unused(folder)
    assert list(tmp_path.iterdir()) == []


def test_other_runs_of_the_name_stay(tmp_path: Path) -> None:
    other = make(tmp_path, "a", "20260101-000000")
    runs.discard_unused(runs.create_run(tmp_path, "a"))
    assert list((tmp_path / "a").iterdir()) == [other]


@pytest.mark.parametrize("entry", ["checkpoints", "metrics.csv", "results.json", "notes.txt"])
def test_a_run_that_has_something_stays(entry: str, tmp_path: Path) -> None:
    folder = make(tmp_path, "a", "20260101-000000")
    (folder / entry).touch()
    runs.discard_unused(folder)
    assert (folder / entry).exists()


# Locking --------------------------------------------------------------------------------------------------------------


def hold(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    """A process that has the folder until it is killed."""
    runs.lock(folder)
    ready.set()
    multiprocessing.Event().wait()


def test_a_folder_belongs_to_one_process_until_that_ends(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready), daemon=True)
    process.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match="in use by another process"):
        runs.lock(tmp_path)
    process.kill()
    process.join()
    runs.lock(tmp_path)
    runs.release(tmp_path)


def test_a_released_folder_can_be_had_again(tmp_path: Path) -> None:
    runs.lock(tmp_path)
    with pytest.raises(UserError, match="in use"):
        runs.lock(tmp_path)
    runs.release(tmp_path)
    runs.release(tmp_path)  # does no harm
    runs.lock(tmp_path)
    runs.release(tmp_path)


def test_the_current_run_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runs.RUN_DIRECTORY_VARIABLE, raising=False)
    with pytest.raises(UserError, match="no run folder"):
        runs.current_run()
    monkeypatch.setenv(runs.RUN_DIRECTORY_VARIABLE, "/a/b")
    assert runs.current_run() == Path("/a/b")


# Writing --------------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.txt"
    runs.write_atomically(path, lambda temporary: runs.write_text("old", temporary))

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        runs.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_has_no_nan(tmp_path: Path) -> None:
    runs.write_json(tmp_path / "a.json", {"a": [1.5, None, "ü"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None, "ü"]}
    with pytest.raises(ValueError, match="JSON"):
        runs.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None, "ü"]}


def test_the_home_folder_is_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert runs.without_home("root: /home/somebody/data, /home/somebody2/x") == "root: ~/data, /home/somebody2/x"
    monkeypatch.setenv("HOME", "/")
    assert runs.without_home("/a/b") == "/a/b"
