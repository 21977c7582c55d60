"""Ranks of torchrun agree on a text through its key-value store."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed import TCPStore

from compresslens.cli.main import same_on_all_ranks
from compresslens.cli.ranks import agree
from compresslens.errors import UserError


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """What torchrun's agent keeps, and the environment it gives to rank zero."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_RUN_ID": "x", "RANK": 0}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    return store


def never() -> str:
    """Decides nothing, and must not be asked."""
    raise AssertionError("only rank zero decides")


def test_all_ranks_get_what_rank_zero_decides(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert agree(lambda: "runs/ä/1") == "runs/ä/1"
    for rank in ("1", "2"):
        monkeypatch.setenv("RANK", rank)
        assert agree(never) == "runs/ä/1"


def test_all_ranks_get_the_error_of_rank_zero(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise UserError("no room")

    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UserError, match=r"^no room$"):
            agree(fail if rank == "0" else never)


def test_a_restart_decides_anew(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert agree(lambda: "first") == "first"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert agree(lambda: "second") == "second"
    monkeypatch.setenv("RANK", "1")
    assert agree(never) == "second"


def test_the_run_folder_is_agreed_on_under_torchrun(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_on_all_ranks(lambda: Path("runs/a/1")) == Path("runs/a/1")
    monkeypatch.setenv("RANK", "1")
    assert same_on_all_ranks(lambda: Path("runs/a/2")) == Path("runs/a/1")
