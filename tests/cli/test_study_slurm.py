"""Studies on a cluster whose programs run the jobs on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compresslens.cli import study, study_slurm, study_task
from compresslens.cli.study_plan import plan, read_study
from compresslens.cli.study_task import Training
from tests.cli.fake_slurm import FakeSlurm
from tests.cli.fake_trainings import FakeTrainings, write_two_configs
from tests.study.study_runs import write_run

pytest.importorskip("submitit")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm(tmp_path)
    monkeypatch.setenv("PATH", f"{slurm.path}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(slurm.folder))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return slurm


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTrainings:
    fake = FakeTrainings(tmp_path)
    monkeypatch.setattr(study_slurm, "command", fake.command)
    return fake


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., int]:
    """Submits a study of two experiments, one of which requires a third; into a folder with a space in its name."""
    config = write_two_configs(tmp_path)
    fixed = ["--config", config, "--runs_dir", str(tmp_path / "my runs"), "--launcher", "slurm", "--seeds", "3"]
    return lambda *options: study.main([*fixed, *options])


def test_jobs_wait_for_what_they_require_and_the_report_for_all(cluster, trainings, submit, tmp_path, capsys):
    resources = ["--partition", "gpu", "--nodes", "2", "--gpus_per_node", "4", "--hours", "1.5"]
    more = ["--slurm", "mem=64GB", "reservation=mine", "exclusive=true", "setup=module load cuda"]
    assert submit(*resources, *more) == 0
    assert "job 100: base, seed 3" in capsys.readouterr().out
    base, prune, qat, report = (cluster.flags(number) for number in (100, 101, 102, 103))
    assert list(cluster.scripts()) == [100, 101, 102, 103]
    expected = {"partition": "gpu", "nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4", "time": "90"}
    for flags in (base, prune, qat):
        assert flags | expected | {"mem": "64GB", "reservation": "mine", "exclusive": ""} == flags
    assert "dependency" not in base | qat
    assert (prune["dependency"], prune["kill-on-invalid-dep"]) == ("afterok:100", "yes")
    assert report["dependency"] == "afterany:100:101:102"
    assert (report["nodes"], report["ntasks-per-node"], report["mem"]) == ("1", "1", "64GB")
    assert "gpus-per-node" not in report
    assert prune["job-name"] == "mine-prune-3"
    assert "\nmodule load cuda\n" in cluster.scripts()[100]
    assert "--kill-on-bad-exit=1" in cluster.scripts()[100]


@pytest.mark.slow
def test_a_study_without_failures(cluster, trainings, submit, tmp_path):
    assert submit() == 0
    assert cluster.run() == {100: 0, 101: 0, 102: 0, 103: 0}
    assert trainings.trained() == [("base", 3), ("prune", 3), ("qat", 3)]
    assert (tmp_path / "my runs" / "mine" / "report" / "index.html").is_file()
    assert submit() == 0
    assert len(cluster.scripts()) == 4, "nothing is left to train: the report is made here"


@pytest.mark.slow
def test_a_failure_ends_what_requires_it_and_is_named(cluster, trainings, submit, tmp_path):
    trainings.failing.add(("base", 3))
    assert submit() == 0
    assert cluster.run() == {100: 3, 101: None, 102: 0, 103: 1}
    (log,) = (tmp_path / "my runs" / "mine" / "slurm").glob("103*err")
    said = log.read_text()
    assert "base, seed 3 failed: see " in said
    assert "100_0_log.err" in said
    assert "prune, seed 3 failed: it requires base, which failed" in said
    assert (tmp_path / "my runs" / "mine" / "report" / "report.json").is_file()

    trainings.failing.clear()
    (cluster.folder / "queue").write_text("")  # all have left it
    assert submit() == 0
    assert [cluster.flags(number)["job-name"] for number in (104, 105, 106)] == [
        *("mine-base-3", "mine-prune-3", "mine-report")
    ], "what is finished is skipped"
    assert cluster.flags(105)["dependency"] == "afterok:104"


def test_what_slurm_has_is_not_started_again(cluster, trainings, submit, tmp_path, capsys):
    assert submit() == 0
    (cluster.folder / "queue").write_text("7\n101\n")
    for launcher in ("slurm", "local"):
        assert submit("--launcher", launcher) == 2
        said = capsys.readouterr().err
        assert said == "error: SLURM has prune, seed 3 of this study in its queue; wait for it, or: scancel 101\n"
    assert len(cluster.scripts()) == 4
    assert submit("--seeds", "4") == 0
    record = json.loads((tmp_path / "my runs" / "mine" / "slurm" / "jobs.json").read_text())
    assert record == {"101": ["prune", 3], "104": ["base", 4], "105": ["prune", 4], "106": ["qat", 4]}


def test_jobs_in_the_queue_keep_their_options(cluster, trainings, submit, capsys):
    """They have begun nothing yet, and other seeds would be trained with other options."""
    other = ["--seeds", "4", "--", "--trainer.max_epochs=1"]
    assert submit() == 0
    (cluster.folder / "queue").write_text("101\n")
    assert submit(*other) == 2
    assert "(only now: --trainer.max_epochs=1)" in capsys.readouterr().err
    (cluster.folder / "queue").write_text("")
    assert submit(*other) == 0, "nothing was begun"
    cluster.start(104).wait()
    assert submit("--seeds", "4") == 2
    assert "(only then: --trainer.max_epochs=1)" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"101": 3}', '{"101": ["base"]}'])
def test_a_damaged_list_of_jobs_is_named(cluster, trainings, submit, tmp_path, capsys, content):
    folder = tmp_path / "my runs" / "mine" / "slurm"
    folder.mkdir(parents=True)
    (folder / "jobs.json").write_text(content)
    for launcher in ("slurm", "local"):
        assert submit("--launcher", launcher) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {folder / 'jobs.json'}, which says")
    assert cluster.scripts() == {}


def test_a_refused_job_takes_the_others_back(cluster, trainings, submit, capsys):
    (cluster.folder / "refused").write_text("102")
    assert submit() == 2
    assert capsys.readouterr().err.endswith("error: SLURM refuses the job: sbatch: error: invalid partition\n")
    assert (cluster.folder / "cancelled").read_text().split() == ["100", "101"]


def test_within_another_job_its_own_settings_are_not_handed_down(cluster, trainings, submit, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "64")
    assert submit() == 0
    assert "SLURM_" not in (cluster.folder / "100.env").read_text()


def test_a_dry_run_shows_the_parameters_and_submits_nothing(cluster, trainings, submit, capsys):
    assert submit("--dry_run", "--gpus_per_node", "2", "--hours", "0.5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "3 jobs, no experience how long"
    assert lines[5].startswith("sbatch, each training: gpus_per_node=2 nodes=1 ntasks_per_node=2")
    assert lines[6] == "sbatch, the report: nodes=1 ntasks_per_node=1 time=60"
    assert lines[7].split()[3:] == ["--trainer.devices=2", "--trainer.num_nodes=1", "--trainer.accelerator=gpu"]
    assert cluster.scripts() == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--jobs", "2"], "SLURM decides itself"),
        (["--nodes", "0"], "--nodes must be at least 1"),
        (["--hours", "nan"], "--hours more than 0"),
        (["--slurm", "mem"], "KEY=VALUE"),
        (["--slurm", "ntasks-per-node=2"], "decided by --gpus_per_node"),
        (["--slurm", "dependency=singleton"], "decided by the study"),
        (["--", "--trainer.devices=2"], "--trainer.devices=2 follows from --gpus_per_node"),
    ],
)
def test_wrong_settings_are_one_line(options, words, submit, capsys):
    assert submit("--dry_run", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_without_slurm_or_submitit_it_says_so(submit, trainings, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit() == 2
    assert "there is no srun here" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert submit() == 2
    assert "pip install 'compresslens[slurm]'" in capsys.readouterr().err


# What a job does ------------------------------------------------------------------------------------------------------


def write_word(path: Path, word: str) -> list[str]:
    """A training that writes a word, and fails since no run is there."""
    return [sys.executable, "-c", f"open({str(path)!r}, 'w').write({word!r})"]


@pytest.fixture
def training(tmp_path: Path) -> Training:
    job = plan(read_study(write_two_configs(tmp_path)), tmp_path / "runs")[0]
    return Training(job, write_word(tmp_path / "word", "start"), write_word(tmp_path / "word", "resume"), False)


@pytest.mark.parametrize(
    ("begun", "restarts", "on_disk", "word"),
    [
        (False, None, False, "start"),
        (False, None, True, "start"),  # the process beside this one has begun already
        (False, "1", True, "resume"),
        (False, "1", False, "start"),
        (True, None, True, "resume"),
    ],
)
def test_it_continues_what_was_begun_before(training, tmp_path, monkeypatch, begun, restarts, on_disk, word):
    if restarts is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    if on_disk:
        write_run(training.job.runs_dir, "base", finished=False)
    with pytest.raises(SystemExit, match="1"):  # no finished run
        replace(training, begun=begun)()
    assert (tmp_path / "word").read_text() == word


def test_what_has_finished_meanwhile_is_left_alone(training, tmp_path):
    fake = FakeTrainings(tmp_path)
    subprocess.run(fake.command(training.job, [], False), check=True)
    training()
    assert not (tmp_path / "word").exists()


def test_a_job_that_is_queued_again_continues(training):
    assert training.checkpoint().function.begun is False
    write_run(training.job.runs_dir, "base", finished=False)
    assert training.checkpoint().function.begun is True


def test_after_sigterm_it_waits_for_what_slurm_does(training, tmp_path, monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    before = signal.getsignal(signal.SIGTERM)
    pid = f"open({str(tmp_path / 'pid')!r}, 'w').close()"
    script = f"import os, signal, sys, time\nos.kill({os.getpid()}, signal.SIGTERM)\n{pid}\nsys.exit(7)"
    monkeypatch.setattr(signal, "getsignal", lambda number: before if callable(before) else (lambda *given: None))
    try:
        assert study_task.run_task([sys.executable, "-c", script]) == 7
    finally:
        signal.signal(signal.SIGTERM, before)
    assert waited == [study_task.SECONDS_TO_BE_STOPPED]


def test_the_time_limit_queues_it_again_and_it_continues(cluster, submit, tmp_path, monkeypatch):
    """The signal goes to all processes that srun has started, as SLURM sends it."""
    run, pids = tmp_path / "my runs" / "mine" / "seed3" / "base" / "20260101-000000", tmp_path / "pids"
    begin = f"import os, pathlib, time\nrun, pids = map(pathlib.Path, ({str(run)!r}, {str(pids)!r}))\n"
    begin += "run.mkdir(parents=True)\n(run / 'config.yaml').touch()\n"
    begin += "pids.with_suffix('.part').write_text(f'{os.getpid()} {os.getppid()}')\n"
    begin += "pids.with_suffix('.part').rename(pids)\ntime.sleep(60)\n"
    start, resume = [sys.executable, "-c", begin], write_word(tmp_path / "word", "resume")
    monkeypatch.setattr(study_slurm, "command", lambda job, options, again: resume if again else start)
    assert submit() == 0
    first = cluster.start(100)
    while not pids.is_file():
        assert first.poll() is None
        time.sleep(0.02)
    numbers = [int(pid) for pid in pids.read_text().split()]
    for pid in numbers:
        os.kill(pid, signal.SIGUSR2)
    assert first.wait(60) != 0
    assert (cluster.folder / "requeued").read_text() == "requeue 100\n"
    for pid in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert cluster.start(100).wait(60) == 1  # it leaves no finished run
    assert (tmp_path / "word").read_text() == "resume"


def test_ranks_read_slurms_environment_but_no_other_launchers(monkeypatch):
    for name, value in {"SLURM_NTASKS": "2", "RANK": "1", "MASTER_PORT": "5", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    environment = study_task._environment()
    assert (environment["SLURM_NTASKS"], environment["MASTER_PORT"]) == ("2", "5")
    assert not {"RANK", "TORCHELASTIC_RUN_ID"} & set(environment)
