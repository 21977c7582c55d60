from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl

from callbacks import Results
from compresslens import runs
from compresslens.reporting import CurvesLogger, Metric
from lightning_modules import ImageClassifier
from tests.lightning_modules.tiny import NoiseData, TinyNetwork, trainer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my_run" / "20260102-030405"
    folder.mkdir(parents=True)
    return folder


def test_the_file(run: Path) -> None:
    (run / "config.yaml").write_text("seed_everything: 3\ndata: {root: ~/images}\nlimit: .inf\nday: 2026-01-02\n")
    results = Results()
    loop = trainer(run, [results])
    results.record(loop, "first", {"b/x": Metric(0.5, (0.25, 0.75), 10, 0.5)}, 1.23456)
    results.record(loop, "second", {"a/y": Metric(math.nan), "b/x": Metric(0.6, None, 10)}, 2, {"threads": 1})
    content = json.loads((run / "results.json").read_text())
    assert content["schema"] == 1
    assert content["name"] == "my_run"
    assert content["seed"] == 3
    assert content["metrics"] == {
        "a/y": {"value": None, "ci95": None, "n": 1, "reference": None},
        "b/x": {"value": 0.6, "ci95": None, "n": 10, "reference": None},
    }
    assert list(content["metrics"]) == ["a/y", "b/x"]
    assert content["wall_seconds"] == {"first": 1.235, "second": 2}
    assert content["verdicts"] == {}
    assert content["details"] == {"second": {"threads": 1}}
    assert content["versions"]["torch"].count(".") >= 2
    assert content["config"]["data"] == {"root": "~/images"}
    assert content["config"]["limit"] == "Infinity", "JSON has no number for it"
    assert content["config"]["day"] == "2026-01-02"


def test_loggers_get_the_values(run: Path) -> None:
    results = Results()
    loop = trainer(run, [results], logger=CurvesLogger(str(run)))
    results.record(loop, "probe", {"a/y": Metric(0.5)}, 0)
    assert (run / "metrics.csv").read_text().splitlines()[1:] == ["0,,a/y,0.5"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results()
    loop = trainer(run, [results])
    results.record(loop, "first", {"x": Metric(1.0)}, 0)
    before = (run / "results.json").read_bytes()
    write_text = Path.write_text

    def half(path: Path, text: str, **options: Any) -> int:
        write_text(path, text[:20], **options)
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        results.record(loop, "second", {"x": Metric(2.0)}, 0)
    assert (run / "results.json").read_bytes() == before
    assert [path.name for path in run.iterdir()] == ["results.json"], "nothing half-written stays"


def samples(run: Path) -> dict[str, list[Any]]:
    return pd.read_parquet(run / "samples.parquet").to_dict("list")  # type: ignore[return-value]


def test_samples_are_joined_by_their_index(run: Path) -> None:
    results = Results()
    loop = trainer(run, [results])
    results.record_samples(
        loop, np.array([2, 0, 1]), {"label": np.array([7, 5, 6]), "hit": np.array([True, False, True])}
    )
    assert samples(run) == {"index": [0, 1, 2], "label": [5, 6, 7], "hit": [False, True, True]}
    results.record_samples(loop, np.array([1, 2, 0]), {"l2": np.array([1.5, 2.5, 0.5])})
    assert samples(run) == {"index": [0, 1, 2], "label": [5, 6, 7], "hit": [False, True, True], "l2": [0.5, 1.5, 2.5]}
    results.record_samples(loop, np.array([0, 1, 2]), {"l2": np.array([9.0, 8.0, 7.0])})
    assert samples(run)["l2"] == [9, 8, 7], "measured anew"
    results.record_samples(loop, np.array([1]), {"cam": np.array([0.25])})
    assert np.isnan(samples(run)["cam"]).tolist() == [True, False, True], "measured on some samples only"
    assert samples(run)["label"] == [5, 6, 7]
    assert samples(run)["hit"] == [False, True, True]
    results.record_samples(loop, np.array([3, 1]), {"cam": np.array([0.5, 0.75])})
    assert samples(run)["index"] == [0, 1, 2, 3], "and on others"
    assert np.nan_to_num(samples(run)["cam"], nan=-1).tolist() == [-1, 0.75, -1, 0.5]


def test_only_rank_zero_writes(run: Path) -> None:
    results = Results()
    loop: Any = type("Trainer", (), {"is_global_zero": False, "default_root_dir": str(run)})()
    results.record(loop, "probe", {"x": Metric(1.0)}, 0)
    results.record_samples(loop, np.array([0]), {"x": np.array([1])})
    assert list(run.iterdir()) == []


def test_the_time_of_a_fit_is_that_of_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("callbacks.results.time", clock)
    first = Results()
    first.on_fit_start(None, None)  # type: ignore[arg-type]
    clock.now = 107.5
    state = first.state_dict()
    clock.now = 1000.0
    second = Results()
    second.load_state_dict(state)
    second.on_fit_start(None, None)  # type: ignore[arg-type]
    clock.now = 1002.0
    second.on_fit_end(None, None)  # type: ignore[arg-type]
    assert second.wall_seconds == {"fit": 9.5}


def test_of_another_split_nothing_is_kept_but_the_time_of_the_fit(run: Path) -> None:
    """The split of a fit is that of the test which ends it."""
    module, data = ImageClassifier(TinyNetwork()), NoiseData()

    class Probe(pl.Callback):
        def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            results, what = Results.of(trainer), str(trainer.state.fn.value)  # type: ignore[union-attr]
            index = np.arange(3 if what == "test" else 2)
            for name in (f"only_{what}", "both"):
                results.record_samples(trainer, index, {name: index})
                results.record(trainer, name, {f"{name}/x": Metric(1.0)}, 1, {"of": what}, {name: what})

        def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            if trainer.state.fn == "validate":
                self.on_test_end(trainer, module)

    def written() -> dict[str, Any]:
        found = json.loads((run / "results.json").read_text())
        return {name: found[name] for name in ("split", "metrics", "details", "verdicts", "wall_seconds")}

    loop = trainer(run, [Probe(), Results()], max_epochs=1)
    loop.fit(module, datamodule=data)
    for what, split, size in (("test", "test", 3), ("validate", "val", 2), ("test", "test", 3)):
        getattr(loop, what)(module, datamodule=data, verbose=False)
        found, probes = written(), {f"only_{what}", "both"}
        assert found["split"] == split
        assert set(found["metrics"]) == {f"{name}/x" for name in probes}
        assert found["details"] == {name: {"of": what} for name in probes}
        assert found["verdicts"] == dict.fromkeys(probes, what)
        assert set(found["wall_seconds"]) == {"fit", *probes}
        assert set(samples(run)) == {"index", *probes}
        assert samples(run)["index"] == list(range(size))
    assert not list(run.glob(".*")), runs.FINISHED_FILE


def test_samples_of_another_split_go_even_if_there_are_no_others(run: Path) -> None:
    module, data = ImageClassifier(TinyNetwork()), NoiseData()

    class Probe(pl.Callback):
        def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            Results.of(trainer).record_samples(trainer, np.arange(3), {"x": np.arange(3)})

        def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            Results.of(trainer).record(trainer, "probe", {"x": Metric(1.0)}, 0)

    loop = trainer(run, [Probe(), Results()])
    loop.test(module, datamodule=data, verbose=False)
    assert (run / "samples.parquet").is_file()
    loop.validate(module, datamodule=data, verbose=False)
    assert json.loads((run / "results.json").read_text())["split"] == "val"
    assert not (run / "samples.parquet").exists()


def test_the_commit_of_a_checkout_is_noted(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "compresslens").mkdir()
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "compresslens" / "runs.py"))
    assert runs.commit() is None
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert runs.commit() == head[:12]
    (tmp_path / "file").write_text("new")
    subprocess.run([*git, "add", "file"], check=True)
    assert runs.commit() == f"{head[:12]}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runs.commit() is None
