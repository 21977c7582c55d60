from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from compresslens.reporting import Metric
from compresslens.reporting.summary import print_summary, row, show

METRICS = {
    "accuracy/top1": Metric(0.9512, (0.936, 0.963), 1000, 0.961),
    "accuracy/agreement": Metric(0.97, (0.96, 0.98), 1000),
    "accuracy/ece": Metric(float("nan"), None, 1000, 0.0123),
    "cam/odd": Metric(0.5, (float("nan"), 0.7), 3),
    "footprint/parameters": Metric(11_181_642, reference=21_289_802),
    "footprint/macs": Metric(0, reference=0),
    "robustness/a_metric_with_a_name_as_long_as_it_gets": Metric(0.25),
}


def write(folder: Path, metrics: dict[str, Metric] = METRICS, name: str = "my[run]") -> None:
    content = {"name": name, "split": "test", "metrics": {key: metric.as_json() for key, metric in metrics.items()}}
    (folder / "results.json").write_text(json.dumps(content))


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    print_summary(tmp_path)
    text = capsys.readouterr().out
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.strip()}
    assert text.startswith("my[run], test split")
    assert lines["accuracy/top1"] == "0.9512 0.936 to 0.963 0.9610 -0.0098"
    assert lines["accuracy/agreement"] == "0.9700 0.960 to 0.980"
    assert lines["accuracy/ece"] == "0.0123"
    assert lines["cam/odd"] == "0.5000"
    assert lines["footprint/parameters"] == "11.18 M 21.29 M × 0.525"
    assert lines["footprint/macs"] == "0 0 +0.0000"
    assert "0.2500" in text, "no figure is cut off by a long name"
    assert text.rstrip().endswith(f"run: {tmp_path}")
    assert max(len(line) for line in text.splitlines()[:-1]) <= 100


def test_notes_stand_below_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    content["details"] = {"footprint": {"notes": ["no [dense] speed-up"], "threads": 1}, "other": {}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    print_summary(tmp_path)
    assert "\nfootprint: no [dense] speed-up\n" in capsys.readouterr().out


def test_nothing_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(tmp_path)
    assert capsys.readouterr().out.replace("\n", "") == f"nothing was measured; the run is in {tmp_path}"


@pytest.mark.parametrize(
    ("value", "is_count", "text"),
    [
        (None, False, ""),
        (None, True, ""),
        (0.12345, False, "0.1235"),
        (7, True, "7"),
        (999, True, "999"),
        (1000, True, "1.00 k"),
        (1_234_567, True, "1.23 M"),
        (9.9e9, True, "9.90 G"),
    ],
)
def test_figures(value: Any, is_count: bool, text: str) -> None:
    assert show(value, is_count) == text


def test_change() -> None:
    assert row("footprint/bytes", Metric(50, reference=200).as_json())[3] == "× 0.250"
    assert row("footprint/bytes_onnx", Metric(50_000, reference=200_000).as_json()) == [
        "50.00 k",
        "",
        "200.00 k",
        "× 0.250",
    ]
    assert row("footprint/latency_ms_openvino_b1", Metric(1.5, reference=3.0).as_json())[3] == "× 0.500"
    assert row("footprint/speedup", Metric(2.0).as_json())[3] == ""
    assert row("accuracy/top1", Metric(0.5, reference=0.75).as_json())[3] == "-0.2500"
    assert row("accuracy/top1", Metric(0.5).as_json())[3] == ""


def test_a_terminal_that_knows_ascii_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii", write_through=True))
    print_summary(tmp_path)
    assert "11.18 M" in out.getvalue().decode("ascii")
