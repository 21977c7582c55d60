"""Starting a W&B run: offline or online, under one id, without traces of the machine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from compresslens import runs

Mode = Literal["online", "offline", "disabled"]
SETTINGS: dict[str, Any] = {  # of all W&B runs
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "console": "off",  # warnings contain the paths of the modules that they come from
    "host": "",
    "symlink": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "init_timeout": 30,
    "reinit": "create_new",  # never log into somebody else's run
}


class NoExperiment:
    """Accepts whatever is done to a W&B run, and does nothing."""

    id = None
    name = None

    def __getattr__(self, name: str) -> NoExperiment:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> NoExperiment:
        return self

    def __getitem__(self, key: Any) -> NoExperiment:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def start_run(folder: Path, options: dict[str, Any], online: bool, warn: Callable[[str], None]) -> Any:
    """Starts or continues the W&B run of a folder.

    Args:
        folder: gets `wandb/`, in which `run_id.txt` keeps the id for later parts of the run.
        options: of `wandb.init`.
        online: send to the server, if there is an API key and `WANDB_MODE` does not say otherwise.
        warn: is told why something is not as asked for.
    """
    mode = choose_mode(online, warn)
    if mode == "disabled":
        return NoExperiment()
    import wandb

    id_file = folder / "wandb" / "run_id.txt"
    if not id_file.exists():
        runs.write_atomically(id_file, _write_new_id)
    options = {**options, "dir": str(folder), "id": id_file.read_text(encoding="utf-8").strip()}
    options.pop("anonymous", None)
    settings = dict(SETTINGS)
    if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:
        settings["x_transaction_log_flush_interval"] = 2.0  # what a killed run loses; the default is 15 seconds
    run = None
    if mode == "online":
        try:
            run = wandb.init(**options, mode="online", settings=wandb.Settings(**settings, quiet=True))
        except Exception as error:
            warn(f"W&B cannot be reached, the run stays offline: {one_line(error)}")
    if run is None:
        options["resume"] = None  # without a server there is nothing to ask; the id is what joins the parts
        run = wandb.init(**options, mode="offline", settings=wandb.Settings(**settings, silent=True))
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    _remove_traces(run)
    return run


def choose_mode(online: bool, warn: Callable[[str], None]) -> Mode:
    """What to do, by what is asked for and by the environment."""
    chosen = os.environ.get("WANDB_MODE", "").lower()
    if chosen == "disabled":
        warn("WANDB_MODE=disabled: nothing is logged to W&B")
        return "disabled"
    if not online or chosen in {"offline", "dryrun"}:
        return "offline"
    try:
        if logged_in():
            return "online"
        reason = "no W&B API key found"
    except Exception as error:
        reason = one_line(error)
    warn(f"{reason}: the run stays offline; `wandb login` and `wandb sync` upload it")
    return "offline"


def logged_in() -> bool:
    """Whether wandb finds an API key, without asking the user or the network.

    wandb alone knows where it looks: which server is the default and whose entries in `.netrc` count have changed.
    """
    import wandb

    try:
        from wandb.sdk.lib.wbauth import authenticate_session

        host = wandb.setup().settings.base_url
        found = authenticate_session(host=host, source="compresslens", prompt=False, update_session=False)
        return found is not None
    except (ImportError, AttributeError, TypeError):  # older versions
        return bool(getattr(getattr(wandb, "api", None), "api_key", None))


def one_line(error: Exception) -> str:
    """Kind and message of an error, shortened."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _write_new_id(path: Path) -> None:
    swept = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None  # the agent waits for that run
    path.write_text(swept or secrets.token_hex(4), encoding="utf-8")


def _remove_traces(run: Any) -> None:
    """Empties wandb's own log, whose first lines name absolute paths, and removes the link to the user's cache."""
    logs = Path(run.settings.sync_dir) / "logs"
    with suppress(OSError):
        (logs / "debug-core.log").unlink(missing_ok=True)
        os.truncate(logs / "debug.log", 0)
