"""One process works, all get the result, or the error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.rank_zero import on_rank_zero
from compresslens.errors import UserError
from tests.lightning_modules.tiny import on_two_ranks


class Particular(Exception):
    """Its constructor wants more than a message, so what is pickled cannot be read."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def succeed() -> dict[str, Any]:
    return {"rank": int(os.environ.get("LOCAL_RANK", "0")), "process": os.getpid()}


def fail() -> None:
    raise UserError("there is nothing to map")


def fail_particularly() -> None:
    raise Particular("nothing", 3)


def fail_with_something_that_cannot_be_pickled() -> None:
    raise RuntimeError("bad", lambda: None)


def return_something_that_cannot_be_pickled() -> Any:
    return lambda: None


def on_each_rank(folder: Path, works: list[Any]) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for number, work in enumerate(works):
        try:
            said = str(on_rank_zero(work))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        (folder / f"{number}-{rank}.txt").write_text(said)


def test_alone() -> None:
    assert on_rank_zero(succeed) == {"rank": 0, "process": os.getpid()}
    marker = object()
    assert on_rank_zero(lambda: marker) is marker, "nothing is pickled"
    with pytest.raises(UserError, match="there is nothing to map"):
        on_rank_zero(fail)


def test_two_processes(tmp_path: Path) -> None:
    works = [
        fail,
        succeed,
        fail_particularly,
        fail_with_something_that_cannot_be_pickled,
        return_something_that_cannot_be_pickled,
        succeed,
    ]
    assert on_two_ranks(on_each_rank, tmp_path, works, timeout=60) == [0, 0], "none hangs"
    said = [[(tmp_path / f"{number}-{rank}.txt").read_text() for rank in range(2)] for number in range(len(works))]
    assert said[0] == ["UserError: there is nothing to map"] * 2
    for number in (1, 5):
        assert said[number][0] == said[number][1]
        assert "'rank': 0" in said[number][0]
    assert said[2] == ["Particular: nothing", "RuntimeError: Particular: nothing"]
    assert said[3][0].startswith("RuntimeError: ('bad'")
    assert said[3][1].startswith("RuntimeError: RuntimeError: ('bad'")
    assert all("pickle" in text and "lambda" in text for text in said[4])
