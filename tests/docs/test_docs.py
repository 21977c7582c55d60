"""The documentation: its commands and configs parse, and what it names exists."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from compresslens.cli import report, study
from compresslens.cli.configs import CONFIG_DIRECTORY, find_config
from compresslens.cli.main import HELP, parse
from compresslens.cli.study_plan import read_study
from tests.command_line import run
from tests.docs.pages import FILES, PAGES, ROOT, TEXTS, Block, blocks, named, prose

OURS = r"(?:compresslens|callbacks|datamodules|lightning_modules)"


# Commands and configs are valid -------------------------------------------------------------------------------------


def commands(program: str) -> list[list[str]]:
    """The arguments of that program, everywhere in the texts."""
    lines = {
        line.split("#")[0].strip()
        for page in TEXTS
        for block in blocks(page)
        if block.language not in ("python", "yaml")
        for line in block.text.replace("\\\n", " ").splitlines()
    }
    found = [re.split(rf"(?:^|[\s/]){re.escape(program)}\s", line, maxsplit=1) for line in sorted(lines)]
    return [shlex.split(parts[1]) for parts in found if len(parts) == 2]


@pytest.mark.parametrize("arguments", commands("train.py"), ids=" ".join)
def test_commands_are_understood(arguments: list[str], examples: Path) -> None:
    """Those that say no more than which config are not parsed: all configs are, by other tests."""
    if "--help" in arguments:
        assert arguments in (["--help"], ["fit", "--help"])
        return
    options = parse(arguments)
    assert options.config is not None
    assert find_config(options.config)
    if options.rest:
        answer = run(*arguments, "--print_config")
        assert answer.status == 0, answer.err


@pytest.mark.parametrize("name", commands("study.py"), ids=" ".join)
def test_studies_exist(name: list[str]) -> None:
    assert (CONFIG_DIRECTORY / "studies" / name[name.index("--config") + 1]).is_file()


def test_options_that_are_named_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Keys of the config apart, which the commands' test checks."""
    for program in (report.main, study.main):
        with pytest.raises(SystemExit):
            program(["--help"])
    known = options_in(HELP + capsys.readouterr().out)
    known |= options_in((ROOT / "benchmarks" / "shortcut.py").read_text(encoding="utf-8")) | OF_SBATCH
    in_prose = {
        option for page in TEXTS for text in named(page) if text.startswith("--") for option in options_in(text)
    }
    in_blocks = {word for name in ("report.py", "study.py") for line in commands(name) for word in before_dashes(line)}
    used = in_prose | options_in(" ".join(in_blocks))
    assert {"--dry_run", "--localization", "--resume"} <= used
    assert {option for option in used - known if option not in ("--trainer", "--data", "--model")} == set()


OF_SBATCH = {"--nodes", "--ntasks-per-node", "--signal"}


def options_in(text: str) -> set[str]:
    """All that begin with two dashes."""
    return set(re.findall(r"--[a-z][\w-]*", text))


def before_dashes(arguments: list[str]) -> list[str]:
    """What stands before `--`."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def test_what_python_examples_import_is_there() -> None:
    lines = [line for page in TEXTS for block in blocks(page) if not block.title for line in block.text.splitlines()]
    imports = [line for line in lines if re.match(r"(from [\w.]+ )?import ", line)]
    assert len(imports) > 3
    for line in imports:
        exec(line, {})


EXAMPLES = [(page, block) for page in TEXTS for block in blocks(page) if block.language == "yaml"]


@pytest.mark.parametrize(
    ("page", "block"),
    EXAMPLES,
    ids=[f"{page.stem}-{block.title or number}" for number, (page, block) in enumerate(EXAMPLES)],
)
def test_configs_are_understood(page: Path, block: Block, examples: Path) -> None:
    """Those that extend nothing are parts that are added to a config."""
    content = yaml.safe_load(block.text)
    if "experiments" in content:
        (examples / "example.yaml").write_text(block.text)
        assert read_study("./example.yaml").experiments == [find_config(name) for name in content["experiments"]]
        return
    if "extends" not in content:
        content["extends"] = "distill_resnet18.yaml"
    (examples / "example.yaml").write_text(yaml.safe_dump(content))
    answer = run("--config", "./example.yaml", "--print_config")
    assert answer.status == 0, answer.err


# What is named exists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    local = [target.split("#")[0] for target in targets if not re.match(r"https?://|#", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_named_configs_and_files_exist(page: Path) -> None:
    paths = [text for text in named(page) if re.fullmatch(r"[\w./-]+\.(yaml|py|md)|(\w+/)+", text)]
    made = {"config.yaml", *FILES}  # in run folders, and by the reader
    places = (ROOT, CONFIG_DIRECTORY, CONFIG_DIRECTORY / "studies", ROOT / "compresslens", ROOT / "sweeps")
    lost = [path for path in paths if path not in made and not any((place / path).exists() for place in places)]
    assert [path for path in lost if not path.startswith((*WRITTEN, "x_"))] == []


WRITTEN = ("runs/", "model/", "figures/", "wandb/", "report/", "root/", "data/", "train/", "val/", "checkpoints/")


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_named_code_exists(page: Path) -> None:
    names = {
        name for text in [*named(page), page.read_text()] for name in re.findall(rf"(?<![\w./]){OURS}(?:\.\w+)+", text)
    }
    assert [name for name in sorted(names) if not exists(name)] == []


def exists(name: str) -> bool:
    """Whether a dotted name is that of a module, or of something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader):
        """Passes over tags of Python objects."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    navigation = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    assert sorted(pages_in(navigation)) == [page.name for page in PAGES]


def pages_in(navigation: Any) -> list[str]:
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in pages_in(part)]
