"""Lightning's command line with our configs: `extends`, errors on one line, run folders, a test after the fit."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from compresslens import runs
from compresslens.cli.check import misspelt_keys
from compresslens.cli.configs import config_chain, display, find_config, place_paths
from compresslens.cli.explain import explain, reason, run_error
from compresslens.cli.trainer import Trainer
from compresslens.errors import UserError

OWN_KEYS = ("extends", "requires")
# What constructors raise when they do not like their arguments; anything else keeps its traceback.
BUILD_ERRORS = (ValueError, TypeError, OSError, ImportError, MisconfigurationException)
NOISE = ("litlogger", "litmodels", "to estimate number of stepping batches", "TPU available", "Seed set to")


class ConfigChain(ActionConfigFile):
    """`--config`: applies the bases that a file extends, one after the other, and then the file."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        for path, document in config_chain(find_config(str(values))):
            Parser.reading = path
            content = place_paths({k: v for k, v in document.items() if k not in OWN_KEYS}, Parser.runs_dir)
            # JSON is YAML, and keeps texts such as "1e-3" texts and numbers numbers.
            for problem in misspelt_keys(content, [action.dest for action in parser._actions]):
                raise UserError(f"{display(path)}: {problem}")
            self.apply_config(parser, cfg, self.dest, json.dumps(content))
        Parser.reading = None


class Parser(LightningArgumentParser):
    """A parser that reports an error on one line, with the file and the nearest valid name, and exit status 2."""

    reading: Path | None = None
    runs_dir: str = "runs"

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        # jsonargparse hands the value of --model.network.weights=null down as the text "None".
        if isinstance(args, list):
            args = [f"{arg[:-4]}null" if isinstance(arg, str) and arg.endswith("=None") else arg for arg in args]
        return super().parse_args(args, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        if not self.exit_on_error:
            super().error(message, ex)
        where = f"{display(Parser.reading)}: " if Parser.reading else ""
        sys.stderr.write(f"error: {where}{explain(message, self)}\n")
        self.exit(2)


class CLI(LightningCLI):
    """Builds trainer, module and data from the config, runs one subcommand, and tests the best checkpoint of a fit."""

    chosen: str = "fit"
    choose_folder: Callable[[], Path]
    started: bool = False  # whether this process made the run folder's content

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only the subcommand in use: each parser inspects the whole trainer."""
        known = {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}
        return {CLI.chosen: known[CLI.chosen] | {"weights_only"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigChain, help="a config in configs/, or a path")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Chooses the run folder once the command line is known to be right; removes it if nothing can be built."""
        gc.freeze()
        gc.enable()  # the command line switched it off during the imports
        folder = CLI.choose_folder()
        os.environ[runs.RUN_DIRECTORY_VARIABLE] = str(folder)
        self.write_config()
        try:
            super().instantiate_classes()
        except BaseException as error:
            self.discard_run()
            if isinstance(error, BUILD_ERRORS):
                raise UserError(reason(error)) from error
            raise

    def _run_subcommand(self, subcommand: str) -> None:
        """Turns what the user can put right into one line; removes the run folder if no step was taken."""
        try:
            super()._run_subcommand(subcommand)
        except SystemExit:
            if self.trainer.interrupted:  # Lightning exits after Ctrl+C
                self.close_loggers()
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            self.close_loggers()
            if self.trainer.global_step == 0:
                self.discard_run()
            if known := run_error(error):
                raise UserError(known) from error
            raise

    @rank_zero_only
    def close_loggers(self) -> None:
        """Ends what loggers have open, such as W&B runs."""
        for logger in self.trainer.loggers:
            if hasattr(logger, "finish"):
                logger.finish()

    @rank_zero_only
    def discard_run(self) -> None:
        """Removes the run folder, unless it was there before or something was measured."""
        if self.started:
            runs.discard_unused(runs.current_run())

    @rank_zero_only
    def write_config(self) -> None:
        """Writes the resolved config into the run folder, unless this continues a run that has it."""
        path = runs.current_run() / "config.yaml"
        if path.exists():
            return
        self.started = True
        config = self.config[self.chosen].clone()
        config.pop("config", None)
        text = self._parser(self.chosen).dump(config, skip_none=False)
        document = {key: value for key, value in yaml.safe_load(text).items() if key != "ckpt_path"}
        text = runs.without_home(yaml.safe_dump(document, sort_keys=False))
        runs.write_atomically(path, partial(runs.write_text, text))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer of this run."""
        trainer = self._get(self.config_init, "trainer")
        if isinstance(trainer.get("callbacks"), list):
            kwargs["callbacks"] = effective(trainer["callbacks"], trainer.get("enable_progress_bar") is not False)
        return super().instantiate_trainer(default_root_dir=str(runs.current_run()), **kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        quiet = {"verbose": False} if subcommand in ("validate", "test") else {}  # the summary says more
        return {**super()._prepare_subcommand_kwargs(subcommand), **quiet, "weights_only": True}

    def before_fit(self) -> None:
        """Hands the config to the loggers."""
        document = yaml.safe_load((runs.current_run() / "config.yaml").read_text(encoding="utf-8"))
        for logger in self.trainer.loggers:
            logger.log_hyperparams(document)

    def after_fit(self) -> None:
        """Tests the best checkpoint, so that a finished fit ends with the figures of the test split."""
        best = runs.current_run() / "checkpoints" / "best.ckpt"
        trainer: Any = self.trainer
        if trainer.interrupted or trainer.fast_dev_run or not best.is_file():
            return
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=str(best), weights_only=True, verbose=False)

    def finish(self) -> None:
        """Marks the run as finished on rank zero, and shows what it found (an export has shown what it wrote)."""
        if self.trainer.is_global_zero and not self.trainer.interrupted:
            from compresslens.reporting.summary import print_summary

            for logger in self.trainer.loggers:
                if hasattr(logger, "log_run"):
                    logger.log_run()
            self.close_loggers()
            runs.finish(runs.current_run())
            if CLI.chosen != "export":
                print_summary(runs.current_run())


def start(subcommand: str, arguments: list[str], runs_dir: str, choose_folder: Callable[[], Path]) -> int:
    """Runs a Lightning subcommand.

    Args:
        subcommand: "fit", "validate", "test", "predict" or "export".
        arguments: the command line behind the subcommand, without our own options.
        runs_dir: what `runs/` at the beginning of texts in configs stands for.
        choose_folder: makes or finds the run folder; called once the command line has been read without an error.

    Returns:
        The exit status.
    """
    silence_noise()
    given = os.environ.get(runs.RUN_DIRECTORY_VARIABLE)
    Parser.reading = None
    CLI.chosen = subcommand
    CLI.choose_folder = staticmethod(choose_folder)
    Parser.runs_dir = runs_dir
    try:
        cli = CLI(
            trainer_class=Trainer,
            args=[subcommand, *arguments],
            auto_configure_optimizers=False,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"allow_abbrev": False},
        )
        cli.finish()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    finally:
        folder = os.environ.pop(runs.RUN_DIRECTORY_VARIABLE, None)
        if folder is not None:
            runs.release(Path(folder))
        if given is not None:
            os.environ[runs.RUN_DIRECTORY_VARIABLE] = given
    return 0


def effective(callbacks: list[Callback], progress_bar: bool) -> list[Callback]:
    """The callbacks that take part.

    An added one replaces one before it that Lightning would not have beside it (the other progress bar, or one that
    saves its state under the same key), so that `callbacks+:` can change the settings of those that a base brings.

    Args:
        callbacks: as configured.
        progress_bar: whether there may be one.
    """
    kept: dict[Any, Callback] = {}
    for callback in callbacks:
        stateful = type(callback).state_dict is not Callback.state_dict
        if not isinstance(callback, ProgressBar):
            kept[callback.state_key if stateful else id(callback)] = callback
        elif progress_bar:
            kept[ProgressBar] = callback
    return list(kept.values())


def is_no_noise(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning's is worth reading."""
    return not any(noise in record.getMessage() for noise in NOISE)


def silence_noise() -> None:
    """Drops advertising and notes about Lightning's internals, so that what matters is seen."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(name).addFilter(is_no_noise)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # says something of torchao's enumerations
    warnings.filterwarnings("ignore", message=".*No complete tensor found")  # of torch.export's files
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*recommended to use `self.log")  # torchmetrics gathers over the ranks
    warnings.filterwarnings("ignore", message=".*WeightAveraging callback, but loading a checkpoint outside")


__all__ = ["CLI", "start"]
