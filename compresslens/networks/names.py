"""Pieces of error messages."""

import difflib
from collections.abc import Iterable


def nearest(name: str, options: Iterable[str], count: int = 1) -> str:
    """Returns the options most similar to `name`, joined by commas, however far off they are."""
    return ", ".join(difflib.get_close_matches(name, list(options), n=count, cutoff=0.0))


def first_line(error: Exception) -> str:
    """Returns the first line of an exception's message, or its type if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
