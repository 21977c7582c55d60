"""W&B that never gets in the way: offline unless asked otherwise, and silent after the first failure."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from compresslens import runs
from compresslens.errors import UserError
from compresslens.reporting.wandb_artifacts import Choice, log_inputs, log_outputs
from compresslens.reporting.wandb_description import describe, origins, read_config, without_home
from compresslens.reporting.wandb_media import MediaBudget
from compresslens.reporting.wandb_start import NoExperiment, one_line, start_run

__all__ = ["OfflineFirstWandbLogger"]


class OfflineFirstWandbLogger(WandbLogger):
    """Logs to a W&B run in `<run folder>/wandb/`.

    The run is offline (`wandb sync` uploads it later) unless `online` is set and there is an API key. `WANDB_MODE` set
    to "offline" or "disabled" is obeyed. A continued run keeps its W&B id, which `wandb/run_id.txt` holds. Whatever
    fails in wandb, up to its import, gives one warning; training goes on without it.

    Code, git state, host, hardware, packages and console output are not recorded, and home folders in hyperparameters
    are written as `~`.

    Group (the experiment, after its study), job type (the method) and tags (method, architecture, data set, seed,
    study) come from the run's folder and config. A run declares as its inputs the checkpoints of other runs that its
    config names as `weights`; :meth:`log_run` logs what it has made.

    Log media through the logger (`log_image`, `log_table`, or `log_metrics` with `wandb.Image` and the like as values),
    not through `experiment`, which lets the failures of wandb through.

    Args:
        project: W&B project.
        online: send to the W&B server while training.
        save_dir: folder of `wandb/`; the folder of the current run if None.
        name: of the W&B run; `<name of the run>/<time stamp>` if None.
        group: W&B group; None: the experiment.
        job_type: W&B job type; None: the method.
        tags: W&B tags, in addition.
        artifacts: what is logged as W&B artifacts: "none"; "samples": `samples.parquet` and pages; "all": also the best
            checkpoint, the files in `model/`, and the lineage. Until they are uploaded they are links in
            `wandb/artifacts/`, no copies.
        media_budget: bytes of pictures and pages that a run may log; what is over is left out.

    Raises:
        UserError: `artifacts` or `media_budget` cannot be.
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
        artifacts: Choice = "all",
        media_budget: int = 50_000_000,
    ) -> None:
        if artifacts not in get_args(Choice):
            raise UserError(f"artifacts is {artifacts!r}; it must be one of {', '.join(get_args(Choice))}")
        if media_budget < 0:
            raise UserError(f"media_budget is {media_budget}; it must not be negative")
        self._artifacts: Choice = artifacts
        self._budget = MediaBudget(media_budget, self._warn)
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
            WandbLogger.log_hyperparams(self, without_home(content))

        self._guard(update)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs numbers and media."""

        def log() -> None:
            kept = self._budget.admit(metrics, Path(self.save_dir))
            if kept:
                WandbLogger.log_metrics(self, kept, step)

        self._guard(log)

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

            self.log_metrics({key: wandb.Html(str(path), inject=False)})

        self._guard(log)

    @rank_zero_only
    def log_run(self) -> None:
        """Logs what the run has made as W&B artifacts; for the end of a run that has succeeded."""
        if self._experiment is not None and not isinstance(self._experiment, NoExperiment):
            self._guard_artifacts(lambda: log_outputs(self._experiment, Path(self.save_dir), self._artifacts))

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
        """Starts or continues the W&B run, and says what it is and what it was made from."""
        folder = Path(self.save_dir)
        config = read_config(folder)
        about = describe(folder, config)
        given = self._wandb_init
        options = {
            **given,
            "name": self._name or f"{folder.resolve().parent.name}/{folder.resolve().name}",
            "group": given.get("group") or about.group,
            "job_type": given.get("job_type") or about.job_type,
            "tags": list(dict.fromkeys([*about.tags, *(given.get("tags") or ())])),
        }
        run = start_run(folder, options, self._online, self._warn)
        if self._artifacts == "all" and not isinstance(run, NoExperiment):
            self._guard_artifacts(lambda: log_inputs(run, folder, origins(config)))
        return run

    def _guard(self, action: Callable[[], Any]) -> None:
        """Does something with the W&B run; the first failure is the last."""
        if isinstance(self._experiment, NoExperiment):
            return
        try:
            action()
        except Exception as error:
            self._give_up(error)

    def _guard_artifacts(self, action: Callable[[], Any]) -> None:
        """Logs artifacts; the first failure ends that, and nothing else."""
        try:
            action()
        except Exception as error:
            self._artifacts = "none"
            self._warn(f"no artifacts are logged to W&B: {one_line(error)}")

    def _give_up(self, error: Exception) -> None:
        self._experiment: Any = NoExperiment()
        self._warn(f"W&B does not work, the run goes on without it: {one_line(error)}")

    @rank_zero_only
    def _warn(self, message: str) -> None:
        warnings.warn(message, stacklevel=2)
