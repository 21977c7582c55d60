"""What the tests of the documentation share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compresslens.export import artefacts
from datamodules import mnist_scenes
from tests.docs.pages import FILES


@pytest.fixture
def examples(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the files of the pages, whose modules can be imported; few scenes, one quick format."""
    for name, text in FILES.items():
        (workplace / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.setattr(artefacts, "FORMATS", ("safetensors",))
    monkeypatch.setattr(mnist_scenes, "DIGITS_PER_CLASS", {"train": 4, "val": 2, "test": 2})
    before = set(sys.modules)
    yield workplace
    for name in set(sys.modules) - before:
        if f"{name}.py" in FILES:
            del sys.modules[name]
