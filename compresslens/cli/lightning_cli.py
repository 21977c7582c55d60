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
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from compresslens import runs
from compresslens.cli.check import misspelt_keys
from compresslens.cli.configs import config_chain, display, find_config, place_paths
from compresslens.cli.explain import explain
from compresslens.errors import UserError

OWN_KEYS = ("extends", "requires")
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

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only the subcommand in use: each parser inspects the whole trainer."""
        return {CLI.chosen: LightningCLI.subcommands()[CLI.chosen] | {"weights_only"}}

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
        except BaseException:
            runs.discard_unused(folder)
            raise

    @rank_zero_only
    def write_config(self) -> None:
        """Writes the resolved config into the run folder, unless this continues a run that has it."""
        path = runs.current_run() / "config.yaml"
        if path.exists():
            return
        config = self.config[self.chosen].clone()
        config.pop("config", None)
        text = self._parser(self.chosen).dump(config, skip_none=False)
        document = {key: value for key, value in yaml.safe_load(text).items() if key != "ckpt_path"}
        text = runs.without_home(yaml.safe_dump(document, sort_keys=False))
        runs.write_atomically(path, partial(runs.write_text, text))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return super().instantiate_trainer(default_root_dir=str(runs.current_run()), **kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def before_fit(self) -> None:
        """Hands the config to the loggers."""
        document = yaml.safe_load((runs.current_run() / "config.yaml").read_text(encoding="utf-8"))
        for logger in self.trainer.loggers:
            logger.log_hyperparams(document)

    def after_fit(self) -> None:
        """Tests the best checkpoint, so that a finished fit ends with the figures of the test split."""
        best = runs.current_run() / "checkpoints" / "best.ckpt"
        if self.trainer.interrupted or self.trainer.fast_dev_run or not best.is_file():
            return
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=str(best), weights_only=True, verbose=False)

    def finish(self) -> None:
        """Marks the run as finished on rank zero, and shows what it found."""
        if self.trainer.is_global_zero and not self.trainer.interrupted:
            from compresslens.reporting.summary import print_summary

            for logger in self.trainer.loggers:
                if hasattr(logger, "finish"):
                    logger.finish()
            runs.finish(runs.current_run())
            print_summary(runs.current_run())


def start(subcommand: str, arguments: list[str], runs_dir: str, choose_folder: Callable[[], Path]) -> int:
    """Runs a Lightning subcommand.

    Args:
        subcommand: "fit", "validate", "test" or "predict".
        arguments: the command line behind the subcommand, without our own options.
        runs_dir: what `runs/` at the beginning of texts in configs stands for.
        choose_folder: makes or finds the run folder; called once the command line has been read without an error.

    Returns:
        The exit status.
    """
    silence_noise()
    CLI.chosen = subcommand
    CLI.choose_folder = staticmethod(choose_folder)
    Parser.runs_dir = runs_dir
    try:
        cli = CLI(
            args=[subcommand, *arguments],
            auto_configure_optimizers=False,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"allow_abbrev": False},
        )
        cli.finish()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def silence_noise() -> None:
    """Drops advertising and notes about Lightning's internals, so that what matters is seen."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(name).addFilter(lambda record: not any(noise in record.getMessage() for noise in NOISE))
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    warnings.filterwarnings("ignore", message=".*does not have many workers")


__all__ = ["CLI", "start"]
