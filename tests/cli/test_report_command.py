"""`report.py` on what is damaged, and while it writes."""

import errno

import numpy as np
import pytest

from compresslens import runs
from compresslens.cli.report import main
from tests.study.study_runs import write_run


@pytest.fixture
def run_report(tmp_path, capsys):
    """Reports on "prune"; returns the exit status and the lines of errors."""

    def call():
        status = main(["prune", "--runs_dir", str(tmp_path), "--output", str(tmp_path / "report")])
        return status, capsys.readouterr().err.splitlines()

    return call


def test_damaged_samples_are_named(tmp_path, run_report):
    path = write_run(tmp_path, "prune") / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    status, (line,) = run_report()
    assert status == 2
    assert line.startswith(f"error: {path} cannot be read (")
    path.unlink()
    status, (line,) = run_report()
    assert status == 2
    assert "has lost its samples.parquet" in line


def test_a_run_that_measured_nothing_per_sample_needs_no_samples(tmp_path, run_report):
    metrics = {"footprint/bytes": {"value": 1e7, "ci95": None, "n": 1, "reference": 4e7}}
    (write_run(tmp_path, "prune", metrics=metrics) / "samples.parquet").unlink()
    assert run_report() == (0, [])


def test_what_cannot_be_read_is_not_said_to_be_unwritable(tmp_path, run_report, monkeypatch):
    path = write_run(tmp_path, "prune") / "figures" / "cam_examples.npz"
    path.parent.mkdir()
    np.savez(path, index=np.arange(3))

    def refuse(*given, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(np, "load", refuse)
    status, (line,) = run_report()
    assert status == 2
    assert line.startswith(f"error: {path} cannot be read (")


@pytest.mark.parametrize("name", ["report.csv", "prune.md"])
def test_a_full_disk_leaves_the_table_and_the_cards_as_they_were(tmp_path, run_report, monkeypatch, name):
    write_run(tmp_path, "prune")
    assert run_report() == (0, [])
    files = [tmp_path / "report" / "report.csv", tmp_path / "report" / "prune.md"]
    before = [file.read_text() for file in files]
    write = runs.write_text

    def half(text, path):
        write(text[: len(text) // 2], path)
        if name.split(".")[1] in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "write_text", half)
    status, (line,) = run_report()
    assert status == 2
    assert line.endswith("No space left on device")
    kept = files.index(tmp_path / "report" / name)
    assert files[kept].read_text() == before[kept]
