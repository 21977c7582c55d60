"""What all tests share."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

# Networks this small lose time to a second thread, and the processes that tests start compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder in which the command line can run within this process, and leaves nothing behind.

    Latency is measured in PyTorch eager alone: compiling a network takes longer than all else that a small run does.
    """
    import numpy as np
    import torch

    import callbacks.footprint

    monkeypatch.setattr(callbacks.footprint, "RUNTIMES", ("eager",))

    environment = dict(os.environ)
    random_states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / ".wandb"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in list(os.environ):
        if name.startswith(("COMPRESSLENS_", "TORCHELASTIC_", "SLURM_", "PL_")) or name in {
            "RANK",
            "LOCAL_RANK",
            "WORLD_SIZE",
        }:
            monkeypatch.delenv(name)
    yield tmp_path
    torch.set_rng_state(random_states[0])
    np.random.set_state(random_states[1])
    random.setstate(random_states[2])
    os.environ.clear()
    os.environ.update(environment)
