"""Checkpoint, exported model and samples of a run as W&B artifacts, and what the run was made from."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from compresslens import runs
from compresslens.errors import UserError

Choice = Literal["none", "samples", "all"]


def log_outputs(run: Any, folder: Path, choice: Choice) -> None:
    """Logs what a run has made: `<name>-samples`, `<name>-pages`, and for "all" `<name>-checkpoint` and `<name>-model`.

    The name is that of the experiment, so that its runs are the versions of one artifact.

    Args:
        run: the W&B run.
        folder: of the run.
        choice: what to log.

    Raises:
        UserError: the paths would name the home folder.
    """
    if choice == "none":
        return
    contents = {"samples": [folder / "samples.parquet"], "pages": sorted((folder / "figures").glob("*.html"))}
    if choice == "all":
        contents["checkpoint"] = [folder / "checkpoints" / "best.ckpt"]
        contents["model"] = sorted((folder / "model").rglob("*"))
    for kind, paths in contents.items():
        files = [path for path in paths if path.is_file()]
        if files:
            artifact = _artifact(kind, folder.resolve(), files, folder)
            run.log_artifact(artifact, aliases=[folder.resolve().name])


def log_inputs(run: Any, folder: Path, checkpoints: Sequence[Path]) -> None:
    """Declares that a run uses the checkpoints of other runs.

    An offline run cannot refer to an artifact by its name. So the same artifact is made again: name, type and content
    are those that the other run has logged, and the server takes the same content for the same version.

    Args:
        run: the W&B run.
        folder: of the run.
        checkpoints: `<other run folder>/checkpoints/best.ckpt`.

    Raises:
        UserError: the paths would name the home folder.
    """
    for checkpoint in checkpoints:
        maker = checkpoint.parent.parent
        artifact = _artifact("checkpoint", maker, [checkpoint], folder)
        # What `run.use_artifact` does, which refuses offline, and online waits for the upload.
        run._log_artifact(artifact, aliases=[maker.name], is_user_created=True, use_after_commit=True)


def _artifact(kind: str, maker: Path, files: Sequence[Path], folder: Path) -> Any:
    """Files of the run `maker`, staged in the `folder` of this run."""
    import wandb

    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{maker.parent.name}-{kind}")
    artifact = wandb.Artifact(name, type=kind, metadata={"run": f"{maker.parent.name}/{maker.name}"})
    top = maker / "model" if kind == "model" else None
    for file in files:
        inside = file.resolve().relative_to(top).as_posix() if top else file.name
        staged = folder / "wandb" / "artifacts" / f"{name}-{maker.name}" / inside
        path = _named_from_here(staged)
        _stage(file, staged)
        artifact.add_file(path, name=inside, policy="immutable", skip_cache=True)
    return artifact


def _stage(file: Path, staged: Path) -> None:
    """A hard link takes no room, keeps the content if the file is replaced, and is what older wandb may remove.

    (`wandb beta sync` of 0.22 removes what it has uploaded, also where it was told not to copy it.)
    """
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.unlink(missing_ok=True)
    try:
        os.link(file, staged)
    except OSError:  # another file system, or one without links
        runs.write_atomically(staged, partial(shutil.copyfile, file))


def _named_from_here(path: Path) -> str:
    """The path from the working folder: W&B is told the paths of files, too, and must not learn the home folder.

    Raises:
        UserError: that path would lead into the home folder from outside.
    """
    absolute, here, home = path.resolve(), Path.cwd(), Path.home()
    common = Path(os.path.commonpath([absolute, here]))
    if absolute.is_relative_to(home) and not common.is_relative_to(home):
        raise UserError(f"paths in {runs.without_home(str(path.parent))} would name the home folder; start from there")
    return os.path.relpath(absolute, here)
