"""Run folders: `<runs_dir>/<name>/<YYYYmmdd-HHMMSS>/`, with `latest` pointing to the newest finished one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

from compresslens.errors import UserError

RUN_DIRECTORY_VARIABLE = "COMPRESSLENS_RUN_DIRECTORY"
FINISHED_FILE = "finished"
_locks: dict[Path, IO[str]] = {}


def create_run(runs_dir: Path, name: str) -> Path:
    """A new, empty run folder.

    Raises:
        UserError: the folder cannot be created or written.
    """
    started = datetime.now()
    for attempt in range(100):
        suffix = f"-{attempt}" if attempt else ""
        folder = runs_dir / name / f"{started:%Y%m%d-%H%M%S}{suffix}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                break
        except OSError as error:
            raise UserError(
                f"cannot create the run folder {folder}: {error.strerror}; choose another --runs_dir"
            ) from None
    raise UserError(f"cannot create a run folder under {runs_dir / name}; choose another --runs_dir or --name")


def runs_of(runs_dir: Path, name: str) -> list[Path]:
    """All run folders of a name, oldest first."""
    parent = runs_dir / name
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.is_symlink() and (p / "config.yaml").is_file())


def unfinished_run(runs_dir: Path, name: str) -> Path:
    """The newest run of that name that did not finish.

    Raises:
        UserError: there is none.
    """
    for folder in reversed(runs_of(runs_dir, name)):
        if not (folder / FINISHED_FILE).exists():
            return folder
    raise UserError(f"nothing to resume: no unfinished run in {runs_dir / name}")


def latest_run(runs_dir: Path, name: str) -> Path | None:
    """The newest finished run of that name."""
    latest = runs_dir / name / "latest"
    return latest if latest.exists() else None


def discard_unused(folder: Path) -> None:
    """Removes a run folder in which nothing was measured or saved yet; any other stays."""
    if {entry.name for entry in folder.iterdir()} <= {".lock", "config.yaml", "wandb"}:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # other runs of that name
            folder.parent.rmdir()


def finish(folder: Path) -> None:
    """Marks the run as finished and points `latest` to it (unless a newer run has finished meanwhile)."""
    (folder / FINISHED_FILE).touch()
    latest = folder.parent / "latest"
    if latest.is_symlink() and latest.exists() and latest.resolve().name > folder.name:
        return
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".latest-") as scratch:
        link = Path(scratch) / "latest"
        link.symlink_to(folder.name)
        link.replace(latest)


def lock(folder: Path) -> None:
    """Holds the folder for this process until :func:`release`, or until the process ends, however it ends.

    Raises:
        UserError: another living process holds it.
    """
    handle = (folder / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise UserError(f"{folder} is in use by another process; wait for it or stop it") from None
    _locks[folder] = handle


def release(folder: Path) -> None:
    """Lets other processes have the folder, if this one holds it."""
    if folder in _locks:
        _locks.pop(folder).close()


def current_run() -> Path:
    """Folder of the run of this process (and of the processes it started for other ranks)."""
    folder = os.environ.get(RUN_DIRECTORY_VARIABLE)
    if folder is None:
        raise UserError("no run folder: this is set by train.py; give an explicit folder instead")
    return Path(folder)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path beside `path`, then moves it into place: never half a file.

    Args:
        path: where the file is to be; its folder is made.
        write: writes the whole content to the path that it gets (same ending as `path`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Writes UTF-8."""
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically; NaN and infinities are refused, since JSON has none."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, partial(write_text, text))


def without_home(text: str) -> str:
    """The text with the user's home folder written as `~`."""
    home = str(Path.home())
    return text.replace(f"{home}/", "~/") if home not in {"/", ""} else text


def commit() -> str | None:
    """The commit of this checkout, "-dirty" where files were changed; None if it is none, or git does not answer."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    call = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
