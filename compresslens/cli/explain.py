"""Turns the long messages of the argument parser into one line with the nearest valid name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from typing import Any

from compresslens.errors import UserError

LONGEST = 300
OWNERS = re.compile(r"given class_path '([\w.]+)'|class_path='([\w.]+)'")
KEYS = re.compile(r"Parser key \"([\w.]+)\"")


def explain(message: str, parser: Any) -> str:
    """One line that says which key, class or value is wrong, and what comes nearest.

    Args:
        message: what jsonargparse reports: the nested attempts to fit the value to each possible type.
        parser: the parser that failed; its options are the candidates for keys that belong to no class.
    """
    text = " ".join(message.split())
    if match := re.search(r"unrecognized arguments: (.*)", text):
        option = match[1].split()[0].split("=")[0]
        if class_path := owner(text, match):
            return unknown_key(option.removeprefix("--").removeprefix("init_args.").split(".")[0], class_path)
        return unknown_option(option, parser)
    if match := re.search(r"arguments are required: ([\w., ]+)", text):
        return f"the config lacks {', '.join(repr(key.split('.', 1)[-1]) for key in match[1].split(', '))}"
    if match := re.search(r"Key '([\w.]+)' is not expected|Group '[\w.]+' does not accept nested key '([\w.]+)'", text):
        return unknown_option(f"--{match[1] or match[2]}", parser)
    if match := re.search(r"Option '([\w.]+)' is not accepted", text):
        return unknown_key(match[1], owner(text, match))
    if match := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        return f"there is no {match[2]!r} in {match[1]}{nearest(match[2], names_of(match[1]))}"
    if match := re.search(r"No module named '([\w.]+)'", text):
        return f"cannot import {match[1]!r}{needed_by(text)}"
    if match := re.search(r"Expected a <class '(\w+)'>\. Got value: (.*?)(?: - |$)", text):
        return f"{where(text)}expected {match[1]}, got {match[2].strip()!r}"
    if match := re.search(r"Expected a typing\.Literal\[([^\]]*)\]\. Got value: (.*?)(?: - |$)", text):
        return f"{where(text)}{match[2].strip()!r} is not one of {match[1]}"
    if match := re.search(r"Given value: (.*?)(?= - Expected | Given value type: |$)", text):
        value, before = match[1].strip(), text[: match.start()]
        choices = re.findall(r"'([\w-]+)'", " ".join(re.findall(r"typing\.Literal\[([^\]]*)\]", before)))
        hint = nearest(value, choices) if choices else expected(before)
        return f"{where(text)}{value!r} is not a valid value{hint}"
    return shorten(text)


def reason(error: BaseException) -> str:
    """Why something could not be built: the parser wraps what a constructor raised, once per level."""
    if own := next((link for link in causes(error) if isinstance(link, UserError)), None):
        return str(own)
    while error.__cause__ is not None:
        error = error.__cause__
    return shorten(str(error) or type(error).__name__)


def run_error(error: BaseException) -> str | None:
    """What to tell the user about a failure that is not a bug; None: it may be one, so show the traceback."""
    text = str(error)
    if own := next((link for link in causes(error) if isinstance(link, UserError)), None):
        return str(own)
    if "Error(s) in loading state_dict" in text:
        problems = [line.strip() for line in text.splitlines()[1:] if line.strip()]
        return f"the checkpoint does not fit the model: {shorten(' '.join(problems))}"
    if re.search(r"Connection (closed|reset) by peer", text):
        return "another process of this run has failed; see its message"
    if type(error).__name__ == "MisconfigurationException":
        return text
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}" if error.strerror and error.filename else text
    return None


def causes(error: BaseException) -> list[BaseException]:
    """The exception, what caused it, what caused that, and so on."""
    links = [error]
    while True:
        last = links[-1]
        cause = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if cause is None or cause in links:
            return links
        links.append(cause)


def shorten(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def expected(text: str) -> str:
    """The types that the innermost value could have had, as a hint, if they can be said in a few words."""
    _, found, after = text.rpartition("Subtypes: [")
    types = after.partition("] Errors:")[0] if found else ""
    types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types).replace("NoneType", "null")
    types = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", types)
    return f"; expected {types.replace(', ', ' or ')}" if types and len(types) <= 60 else ""


def unknown_option(option: str, parser: Any) -> str:
    """For an option of no class: the candidates are all of the parser's."""
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    own = ["--name", "--runs_dir", "--resume", "--requires"]
    shown = option if option.startswith("--") else f"--{option}"
    return f"there is no option {shown!r}{nearest(shown, [*known, *own])}"


def unknown_key(key: str, class_path: str | None) -> str:
    """For an argument that a class does not have."""
    if class_path is None:
        return f"there is no option {key!r}"
    known = arguments_of(class_path)
    hint = nearest(key, known)
    return f"{class_path} has no option {key!r}" + (hint or f"; it has: {', '.join(known)}")


def owner(text: str, match: re.Match[str]) -> str | None:
    """The class that a rejected option was meant for: the last one named before it, or else the first after."""
    before = [m[1] or m[2] for m in OWNERS.finditer(text, 0, match.start())]
    after = [m[2] for m in OWNERS.finditer(text, match.end()) if m[2]]
    callable_first = "expects a function or a callable class" in text[: match.start()] and after
    return after[0] if callable_first else (before or after or [None])[-1 if before else 0]


def arguments_of(class_path: str) -> list[str]:
    """Names of the arguments of a class or function, those of its bases included."""
    module, _, name = class_path.rpartition(".")
    target = getattr(importlib.import_module(module), name)
    if not inspect.isclass(target):
        return list(inspect.signature(target).parameters)
    names: dict[str, None] = {}
    for base in target.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {
                p.name: None for p in parameters if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            }
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
    return list(names)


def names_of(module: str) -> list[str]:
    """Public names of a module."""
    return [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]


def needed_by(text: str) -> str:
    """Which class could not be imported for it."""
    owners = [m[1] or m[2] for m in OWNERS.finditer(text)]
    return f" (for {owners[-1]})" if owners else ""


def where(text: str) -> str:
    """The class and the key that a value was given for."""
    owners = [m[1] or m[2] for m in OWNERS.finditer(text)]
    keys = KEYS.findall(text)
    place = " ".join([*owners[-1:], *keys[-1:]])
    return f"{place}: " if place else ""


def nearest(name: str, known: list[str]) -> str:
    """The hint at the end of a message."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
