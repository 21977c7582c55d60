"""Entry point: what can be answered quickly is answered before Lightning is imported."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compresslens import runs
from compresslens.cli.configs import config_chain, find_config, refuse_circles, requirements, run_name, shipped_configs
from compresslens.cli.slurm_ranks import agree_under_slurm, tasks
from compresslens.errors import UserError

SUBCOMMANDS = ("fit", "validate", "test", "predict", "export")
INFORMATIVE = ("--print_config", "--model.help", "--data.help")  # options that show something and stop
HELP = """usage: python train.py [fit|validate|test|predict|export] --config NAME [options]

Compress an image classifier and hold it against the model it came from.

  --config NAME       a config in configs/ (below), or a path; required
  --name NAME         name of the run (default: the config's, folder_name for those in folders)
  --runs_dir DIR      where run folders are kept (default: runs)
  --resume            continue the newest unfinished run of that name, exactly
  --requires none     do not train first what the config requires
  --ckpt_path FILE    checkpoint to validate, test, predict with or export (default: the latest finished run's best)
  --KEY=VALUE         any key of the config, e.g. --trainer.max_epochs=2 --data.batch_size=64
  --print_config      show the whole resolved config and stop

`python train.py fit --help` lists every option of the trainer; add a class name to
`fit --model.help CLASS`, `fit --data.help CLASS` for those of a module or a data set.

configs:
"""


@dataclass(frozen=True)
class Options:
    """What train.py itself reads from the command line; `rest` goes to Lightning."""

    subcommand: str
    config: str | None
    name: str | None
    runs_dir: str
    resume: bool
    requires: bool
    rest: list[str]


def parse(arguments: list[str]) -> Options:
    """Splits the command line.

    Raises:
        UserError: no such subcommand, an option without its value, or more than one config.
    """
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in SUBCOMMANDS:
        raise UserError(f"there is no subcommand {arguments[0]!r}; choose {', '.join(SUBCOMMANDS)}")
    subcommand = arguments.pop(0) if arguments and arguments[0] in SUBCOMMANDS else "fit"
    values: dict[str, str | None] = {"--config": None, "--name": None, "--runs_dir": "runs", "--requires": None}
    resume, rest = False, []
    while arguments:
        option, equals, value = arguments.pop(0).partition("=")
        option = "--config" if option == "-c" else option
        if option == "--resume" and not equals:
            resume = True
        elif option in values:
            if not equals and (not arguments or arguments[0].startswith("--")):
                raise UserError(f"{option} needs a value")
            if option == "--config" and values[option] is not None:
                raise UserError("give one --config; a config can name others with `extends:`")
            values[option] = value if equals else arguments.pop(0)
        else:
            rest.append(f"{option}{equals}{value}")
    if values["--requires"] not in (None, "none", "null", "false", "[]"):
        raise UserError(f"--requires takes only 'none', got {values['--requires']!r}")
    if resume and subcommand != "fit":
        raise UserError(f"--resume continues a fit; leave it out of {subcommand}")
    runs_dir = values["--runs_dir"] or "runs"
    return Options(
        subcommand, values["--config"], values["--name"], runs_dir, resume, values["--requires"] is None, rest
    )


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status (2 for anything that the user can put right)."""
    if not arguments or arguments in (["-h"], ["--help"]):
        print(HELP + "\n".join(f"  {name}" for name in shipped_configs()))
        return 0 if arguments else 2
    # Importing torch and Lightning makes millions of objects that stay: collecting garbage meanwhile doubles the time.
    gc.disable()
    try:
        return run(parse(arguments))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not is_child_rank():
            print("interrupted; `--resume` continues from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        gc.freeze()  # the same objects would be searched in vain when the interpreter ends
        gc.enable()


def run(options: Options) -> int:
    """One subcommand: looks up the config, trains what it requires, prepares the run folder, starts Lightning."""
    informative = any(o in ("-h", "--help") or o.startswith(INFORMATIVE) for o in options.rest)
    if options.config is None:
        if informative:
            from compresslens.cli.lightning_cli import start

            return start(options.subcommand, options.rest, runs_dir=options.runs_dir, choose_folder=Path)
        raise UserError("--config is missing; `python train.py --help` lists the shipped ones")
    path = find_config(options.config)
    chain = config_chain(path)
    trained = options.name or run_name(path)
    # An evaluation must not become the `latest` run of the name: others look there for the checkpoint.
    name = trained if options.subcommand == "fit" else f"{trained}_{options.subcommand}"
    runs_dir = Path(options.runs_dir).expanduser()
    rest = options.rest
    if not informative and not is_child_rank():
        if options.requires:
            from compresslens.cli.requirements import train_missing

            refuse_circles(path)
            if status := train_missing(requirements(chain), runs_dir, rest):
                return status
        doing = "exporting" if options.subcommand == "export" else "evaluating"
        if options.subcommand != "fit" and not any(o.startswith("--ckpt_path") for o in rest):
            rest = rest + latest_checkpoint(runs_dir, trained, doing)
    choose = partial(same_on_all_ranks, partial(own_folder, runs_dir, name, options.resume))
    if options.resume and not informative:
        folder = choose()
        choose = partial(Path, folder)
        path, last = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
        rest = [*rest, f"--ckpt_path={last}"] if last.is_file() else rest
        print(
            f"resuming {folder}" + ("" if last.is_file() else ", from the start: it has no checkpoint yet"), flush=True
        )
    from compresslens.cli.lightning_cli import start

    return start(options.subcommand, ["--config", str(path), *rest], runs_dir=options.runs_dir, choose_folder=choose)


def is_child_rank() -> bool:
    """Whether another process (Lightning's launcher, or rank zero of torchrun) prepares the run for this one."""
    launched = int(os.environ.get("LOCAL_RANK", "0")) > 0
    return launched or int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) > 0


def same_on_all_ranks(choose: Callable[[], Path]) -> Path:
    """The folder of this run: chosen by one process, the same for every rank."""
    given = os.environ.get(runs.RUN_DIRECTORY_VARIABLE)
    if given and is_child_rank():
        return Path(given)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from compresslens.cli.ranks import agree

        return Path(agree(lambda: str(choose())))
    if tasks() > 1:
        return Path(agree_under_slurm(lambda: str(choose())))
    return choose()


def own_folder(runs_dir: Path, name: str, resume: bool) -> Path:
    """Finds or makes the run folder and locks it (on the one rank that does so)."""
    folder = runs.unfinished_run(runs_dir, name) if resume else runs.create_run(runs_dir, name)
    runs.lock(folder)
    return folder


def latest_checkpoint(runs_dir: Path, name: str, doing: str = "evaluating") -> list[str]:
    """The option that evaluates (or exports) the newest finished run of that name, if there is one."""
    latest = runs.latest_run(runs_dir, name)
    if latest is None:
        print(f"no finished run of {name} in {runs_dir}: {doing} the network as configured", flush=True)
        return []
    checkpoint = latest / "checkpoints" / "best.ckpt"
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} is missing; name a checkpoint with --ckpt_path")
    print(f"{doing} {checkpoint}", flush=True)
    return [f"--ckpt_path={checkpoint}"]


__all__ = ["Options", "main", "parse"]
