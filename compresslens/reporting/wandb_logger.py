"""W&B that never gets in the way: offline unless asked otherwise, and silent after the first failure."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from compresslens import runs

Mode = Literal["online", "offline", "disabled"]


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


class OfflineFirstWandbLogger(WandbLogger):
    """Logs to a W&B run in `<run folder>/wandb/`.

    The run is offline (`wandb sync` uploads it later) unless `online` is set and there is an API key. `WANDB_MODE` set
    to "offline" or "disabled" is obeyed. A continued run keeps its W&B id, which `wandb/run_id.txt` holds. Whatever
    fails in wandb, up to its import, gives one warning; training goes on without it.

    Code, git state, host, hardware, packages and console output are not recorded, and home folders in hyperparameters
    are written as `~`.

    Log media through the logger (`log_image`, `log_table`, or `log_metrics` with `wandb.Image` and the like as values),
    not through `experiment`, which lets the failures of wandb through.

    Args:
        project: W&B project.
        online: send to the W&B server while training.
        save_dir: folder of `wandb/`; the folder of the current run if None.
        name: of the W&B run; `<name of the run>/<time stamp>` if None.
        group: W&B group.
        job_type: W&B job type.
        tags: W&B tags.
    """

    def __init__(
        self,
        project: str = "compresslens",
        online: bool = False,
        save_dir: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        self._online = online
        self._run_folder = save_dir
        try:
            super().__init__(name=name, project=project, group=group, job_type=job_type, tags=tags)
        except ModuleNotFoundError as error:
            Logger.__init__(self)
            self._project, self._name, self._id, self._prefix = project, name, None, ""
            self._give_up(error)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_experiment": None}

    @property
    def save_dir(self) -> str:
        """Folder that holds `wandb/`."""
        return str(runs.current_run() if self._run_folder is None else self._run_folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; a dummy that does nothing if there can be none, and on other ranks."""
        if self._experiment is None:
            try:
                self._experiment = self._start()
            except Exception as error:
                self._give_up(error)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Adds to the configuration of the W&B run."""

        def update() -> None:
            content = params if isinstance(params, Mapping) else vars(params)
            WandbLogger.log_hyperparams(self, _without_home(content))

        self._guard(update)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs numbers and media."""
        self._guard(lambda: WandbLogger.log_metrics(self, metrics, step))

    @rank_zero_only
    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """Logs images, see `WandbLogger.log_image`."""
        self._guard(lambda: WandbLogger.log_image(self, *args, **kwargs))

    @rank_zero_only
    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Logs a table, see `WandbLogger.log_table`."""
        self._guard(lambda: WandbLogger.log_table(self, *args, **kwargs))

    @rank_zero_only
    def log_page(self, key: str, path: str | Path) -> None:
        """Logs an HTML page."""

        def log() -> None:
            import wandb

            media: dict[str, Any] = {key: wandb.Html(str(path), inject=False)}
            WandbLogger.log_metrics(self, media)

        self._guard(log)

    def watch(self, *args: Any, **kwargs: Any) -> None:
        """Logs gradients, see `wandb.Run.watch`."""
        self._guard(lambda: WandbLogger.watch(self, *args, **kwargs))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Nothing: checkpoints stay in the run folder."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing: a test may follow the fit."""

    @rank_zero_only
    def finish(self) -> None:
        """Ends the W&B run, which otherwise happens when the process ends."""
        if self._experiment is not None and not isinstance(self._experiment, NoExperiment):
            self._guard(self._experiment.finish)
            self._experiment = None

    def _start(self) -> Any:
        """Starts or continues the W&B run."""
        mode = self._mode()
        if mode == "disabled":
            return NoExperiment()
        import wandb

        folder = Path(self.save_dir)
        id_file = folder / "wandb" / "run_id.txt"
        if not id_file.exists():
            runs.write_atomically(id_file, _write_new_id)
        settings: dict[str, Any] = {
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
        if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:
            settings["x_transaction_log_flush_interval"] = 2.0  # what a killed run loses; the default is 15 seconds
        options: dict[str, Any] = {
            **self._wandb_init,
            "dir": str(folder),
            "id": id_file.read_text(encoding="utf-8").strip(),
            "name": self._name or f"{folder.resolve().parent.name}/{folder.resolve().name}",
        }
        options.pop("anonymous", None)
        run = None
        if mode == "online":
            try:
                run = wandb.init(**options, mode="online", settings=wandb.Settings(**settings, quiet=True))
            except Exception as error:
                self._warn(f"W&B cannot be reached, the run stays offline: {_one_line(error)}")
        if run is None:
            options["resume"] = None  # without a server there is nothing to ask; the id is what joins the parts
            run = wandb.init(**options, mode="offline", settings=wandb.Settings(**settings, silent=True))
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        _remove_traces(run)
        return run

    def _mode(self) -> Mode:
        """What to do, by the settings and the environment."""
        chosen = os.environ.get("WANDB_MODE", "").lower()
        if chosen == "disabled":
            self._warn("WANDB_MODE=disabled: nothing is logged to W&B")
            return "disabled"
        if not self._online or chosen in {"offline", "dryrun"}:
            return "offline"
        try:
            if _logged_in():
                return "online"
            reason = "no W&B API key found"
        except Exception as error:
            reason = _one_line(error)
        self._warn(f"{reason}: the run stays offline; `wandb login` and `wandb sync` upload it")
        return "offline"

    def _guard(self, action: Callable[[], Any]) -> None:
        """Does something with the W&B run; the first failure is the last."""
        if isinstance(self._experiment, NoExperiment):
            return
        try:
            action()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._experiment: Any = NoExperiment()
        self._warn(f"W&B does not work, the run goes on without it: {_one_line(error)}")

    @rank_zero_only
    def _warn(self, message: str) -> None:
        warnings.warn(message, stacklevel=2)


def _logged_in() -> bool:
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


def _write_new_id(path: Path) -> None:
    path.write_text(secrets.token_hex(4), encoding="utf-8")


def _remove_traces(run: Any) -> None:
    """Empties wandb's own log, whose first lines name absolute paths, and removes the link to the user's cache."""
    logs = Path(run.settings.sync_dir) / "logs"
    with suppress(OSError):
        (logs / "debug-core.log").unlink(missing_ok=True)
        os.truncate(logs / "debug.log", 0)


def _without_home(value: Any) -> Any:
    """The value with the user's home folder written as `~` in all texts."""
    if isinstance(value, Mapping):
        return {key: _without_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_home(item) for item in value]
    if isinstance(value, (str, Path)):
        return runs.without_home(str(value))
    return value


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
