"""Studies on this machine, with trainings that only pretend."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from compresslens.cli import study, study_local
from compresslens.cli.study_estimate import seconds_to_go
from compresslens.cli.study_plan import plan, read_study
from compresslens.cli.thresholds import thresholds
from compresslens.errors import UserError
from compresslens.study.thresholds import Thresholds
from tests.cli.fake_trainings import STAMP, FakeTrainings, as_trained, write_two_configs
from tests.study.study_runs import write_run


@pytest.fixture
def two_configs(tmp_path):
    return write_two_configs(tmp_path)


@pytest.fixture
def fake_training(tmp_path, monkeypatch):
    """Trainings that end with a finished run at once; those named in `failing` fail. Also: what was trained."""
    fake = FakeTrainings(tmp_path)
    monkeypatch.setattr(study_local, "command", fake.command)
    monkeypatch.setattr(study_local, "POLL_SECONDS", 0.01)
    return fake.failing, fake.trained


def test_what_is_required_comes_first_and_once(two_configs, tmp_path):
    jobs = plan(read_study(two_configs), tmp_path / "runs")
    assert [job.key for job in jobs] == [(name, seed) for seed in (0, 3) for name in ("base", "prune", "qat")]
    assert jobs[1].requires == ("base",)
    assert jobs[3].runs_dir == tmp_path / "runs" / "mine" / "seed3"


def test_the_shipped_study_is_a_teacher_and_seven_models(tmp_path):
    names = [job.name for job in plan(read_study("study_resnet18.yaml"), tmp_path)]
    assert names[0] == "teacher_resnet34"
    assert len(names) == len(set(names)) == 9  # the uncompressed network, too
    assert names.index("baseline_resnet18") < names.index("prune_resnet18")


def test_trainings_get_their_seed_and_the_options(two_configs, tmp_path):
    job = plan(read_study(two_configs), tmp_path)[-1]
    call = study_local.command(job, ["--trainer.max_epochs=1"], resume=False)
    assert call[2:] == [
        *("fit", "--config", str(tmp_path / "qat.yaml"), "--runs_dir", str(tmp_path / "mine" / "seed3")),
        *("--requires", "none", "--seed_everything=3", "--model.seed=3", "--data.seed=3", "--trainer.max_epochs=1"),
    ]
    assert not job.begun
    write_run(job.runs_dir, "qat", finished=False)
    assert job.begun
    assert study_local.command(job, ["--trainer.max_epochs=1"], resume=True)[-2:] == ["none", "--resume"]


def test_it_trains_what_is_missing_and_reports(two_configs, tmp_path, fake_training, capsys):
    _, trained = fake_training
    arguments = ["--config", two_configs, "--runs_dir", str(tmp_path / "runs")]
    assert study.main(arguments) == 0
    assert trained() == [(name, seed) for seed in (0, 3) for name in ("base", "prune", "qat")]
    assert (tmp_path / "runs" / "mine" / "report" / "index.html").is_file()
    assert study.main([*arguments, "--seeds", "3", "4", "--jobs", "2"]) == 0
    assert set(trained()[6:]) == {("base", 4), ("prune", 4), ("qat", 4)}, "what is finished is skipped"
    assert trained().index(("base", 4)) < trained().index(("prune", 4))
    assert "finished" in capsys.readouterr().out


def test_it_goes_on_past_failures_and_names_them(two_configs, tmp_path, fake_training, capsys):
    failing, trained = fake_training
    failing.add(("base", 0))
    assert study.main(["--config", two_configs, "--runs_dir", str(tmp_path / "runs")]) == 1
    assert trained() == [("qat", 0), ("base", 3), ("prune", 3), ("qat", 3)]
    said = capsys.readouterr().err
    assert "base, seed 0 failed: exit status 3" in said
    assert "prune, seed 0 failed: it requires base, which failed" in said
    assert (tmp_path / "runs" / "mine" / "report" / "index.html").is_file()


def test_a_dry_run_trains_nothing(two_configs, tmp_path, fake_training, capsys):
    _, trained = fake_training
    write_run(tmp_path / "runs" / "other" / "seed0", "qat")
    (tmp_path / "runs/other/seed0/qat/latest").symlink_to("20260101-000000")
    assert study.main(["--config", two_configs, "--runs_dir", str(tmp_path / "runs"), "--dry_run"]) == 0
    assert trained() == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["qat", "0", "to", "do", "1.0"]
    assert lines[-1] == "6 jobs, about 2 minutes to go, 4 of them unknown"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("experiments: []", "experiments must be a list"),
        ("experiments: [qat.yaml]\nseeds: [-1]", "seed -1 is not in"),
        ("experiments: [qat.yaml]\nseeds: 1", "seeds must be"),
        ("experiments: [qat.yaml]\nseed: [1]", "unknown key 'seed'"),
        ("experiments: [gone.yaml]", "no config 'gone.yaml'"),
        ("experiments: [qat.yaml, ./qat.yaml]", "stands there twice"),
        ("experiments: [qat.yaml, other/qat.yaml]", "have the same name"),
        ("experiments: [qat.yaml]\nlocalization: 2", "localization must be in [0, 1)"),
        ("experiments: [qat.yaml]\ndistance: far", "must be numbers"),
        ("experiments: [qat.yaml]\noptions: [--data.seed=1]", "--data.seed=1 is what the study itself gives"),
    ],
)
def test_mistakes_are_one_line(tmp_path, content, words, capsys):
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "qat.yaml", tmp_path / "other" / "qat.yaml"):
        path.write_text("{}")
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert study.main(["--config", str(path), "--dry_run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--job", "2"], "unknown option --job"),
        (["--trainer.max_epochs=1"], "options of train.py stand behind --"),
        (["--jobs", "0"], "must be at least 1"),
        (["--seeds", "-1"], "seed -1"),
        (["--distance", "-1"], "distance at least 0"),
        (["--gpus_per_node", "2"], "is for --launcher slurm"),
        (["--", "--name=x"], "--name=x is what the study itself gives"),
    ],
)
def test_wrong_options_are_one_line(two_configs, options, words, capsys):
    assert study.main(["--config", two_configs, "--dry_run", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_help_says_what_thresholds_are_without_heavy_imports():
    script = "import sys; from compresslens.cli import study\ntry: study.main(['--help'])\nfinally: "
    script += "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    call = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said = " ".join(call.stdout.split())
    assert "share of the energy on the object that may be lost (0.1)" in said
    assert "by a factor of at most 1 + this count as equally far (0.1)" in said
    assert thresholds() == asdict(Thresholds())


def test_thresholds_are_of_the_command_or_else_of_the_file(two_configs, tmp_path, fake_training):
    Path(two_configs).write_text("experiments: [qat.yaml]\ndistance: 0.3\nlocalization: 0.2\n")
    arguments = ["--config", two_configs, "--runs_dir", str(tmp_path / "my runs"), "--localization", "0.4"]
    assert study.main(arguments) == 0
    content = json.loads((tmp_path / "my runs" / "mine" / "report" / "report.json").read_text())
    assert content["thresholds"] == {"localization": 0.4, "distance": 0.3}


def test_runs_of_other_options_are_not_kept_silently(two_configs, tmp_path, fake_training, capsys):
    failing, trained = fake_training
    arguments = ["--config", two_configs, "--runs_dir", str(tmp_path / "runs"), "--seeds", "0"]
    failing |= {(name, 0) for name in ("base", "prune", "qat")}
    assert study.main([*arguments, "--", "--trainer.max_epochz=1"]) == 1
    failing.clear()
    assert study.main([*arguments, "--", "--trainer.max_epochs=1"]) == 0, "nothing was begun with the typo"
    record = tmp_path / "runs" / "mine" / "options.json"
    assert json.loads(record.read_text()) == {"options": ["--trainer.max_epochs=1"]}
    assert study.main([*arguments, "4", "--", "--trainer.max_epochs=1"]) == 0
    capsys.readouterr()
    done = trained()

    more = ["--data.batch_size=8", "--trainer.max_epochs=2"]
    for other in (["--", *more], ["--dry_run", "--", *more], ["--seeds", "9", "--", *more]):
        assert study.main([*arguments, *other]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{tmp_path / 'runs' / 'mine'} were begun with other options" in line
        assert "only then: --trainer.max_epochs=1; only now: --data.batch_size=8 --trainer.max_epochs=2)" in line
    record.write_text("{")
    assert study.main([*arguments, "--", "--trainer.max_epochs=1"]) == 2
    assert "not known" in capsys.readouterr().err
    assert trained() == done


def test_the_order_of_options_counts(two_configs, tmp_path, fake_training, capsys):
    arguments = ["--config", two_configs, "--runs_dir", str(tmp_path / "runs"), "--seeds", "0", "--"]
    assert study.main([*arguments, "--trainer.max_epochs=1", "--trainer.max_epochs=2"]) == 0
    assert study.main([*arguments, "--trainer.max_epochs=2", "--trainer.max_epochs=1"]) == 2
    assert "in another order: --trainer.max_epochs=1 --trainer.max_epochs=2" in capsys.readouterr().err


def test_what_is_begun_is_of_the_same_options_too(two_configs, tmp_path, fake_training, capsys):
    write_run(tmp_path / "runs" / "mine" / "seed0", "qat", finished=False)
    arguments = ["--config", two_configs, "--runs_dir", str(tmp_path / "runs")]
    assert study.main(arguments) == 2
    assert "not known, for lack of a readable options.json" in capsys.readouterr().err


def test_no_home_folder_is_written_down(two_configs, tmp_path, fake_training):
    arguments = ["--config", two_configs, "--runs_dir", str(tmp_path / "runs"), "--seeds", "0"]
    option = f"--data.root={Path.home()}/images"
    assert study.main([*arguments, "--", option]) == 0
    assert str(Path.home()) not in (tmp_path / "runs" / "mine" / "options.json").read_text()
    assert study.main([*arguments, "--", option]) == 0


def test_a_report_that_cannot_be_made_is_no_failure_to_begin(two_configs, tmp_path, fake_training, capsys):
    _, trained = fake_training
    write_run(tmp_path / "made" / "seed0", "qat", data={"class_path": "mine.Data"}, stamp=STAMP)
    as_trained(tmp_path / "made" / "seed0" / "qat" / STAMP)
    assert study.main(["--config", two_configs, "--runs_dir", str(tmp_path / "runs"), "--seeds", "0"]) == 1
    assert len(trained()) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("study: no report: ")
    assert '(data.class_path: "mine.Data", and "datamodules.MNISTScenes")' in line


def test_two_studies_do_not_train_the_same(two_configs, tmp_path, fake_training, capsys):
    _, trained = fake_training
    arguments = ["--config", two_configs, "--runs_dir", str(tmp_path / "runs")]
    with study.held(plan(read_study(two_configs), tmp_path / "runs")):
        assert study.main([*arguments, "--seeds", "3"]) == 2
        assert "in use by another process" in capsys.readouterr().err
        assert study.main([*arguments, "--seeds", "5"]) == 0, "other seeds are other folders"
    assert {seed for _, seed in trained()} == {5}


@pytest.fixture
def heard():
    """No signal is ignored, as it is where the tests run under nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_training_too(number, two_configs, tmp_path, monkeypatch, capsys, heard):
    said = tmp_path / "pid"
    script = f"import os, time; open({str(said)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(study_local, "command", lambda *given: [sys.executable, "-c", script])
    monkeypatch.setattr(study_local, "POLL_SECONDS", 0.01)

    def interrupt():
        while not (said.is_file() and said.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    assert study.main(["--config", two_configs, "--runs_dir", str(tmp_path / "runs")]) == 128 + number
    assert "goes on where this stopped" in capsys.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.read_text()), 0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with study.held(plan(read_study(two_configs), tmp_path / "runs")):
        pass  # nobody holds the folders any more


def test_trainings_side_by_side_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(study_local.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert "OMP_NUM_THREADS" not in study_local.environment(1)
    assert [study_local.environment(jobs)["OMP_NUM_THREADS"] for jobs in (2, 3, 20)] == ["4", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert study_local.environment(2)["OMP_NUM_THREADS"] == "5"


def test_time_to_go_is_that_of_the_longest_chain(two_configs, tmp_path):
    jobs = plan(read_study(two_configs), tmp_path)[:3]  # prune requires base, qat nothing
    seconds = {jobs[0].key: 100.0, jobs[1].key: 30.0, jobs[2].key: 110.0}
    assert seconds_to_go(jobs, seconds, 1) == 240
    assert seconds_to_go(jobs, seconds, 2) == 130
    assert seconds_to_go(jobs, seconds, 9) == 130
    del seconds[jobs[0].key]  # finished
    assert seconds_to_go(jobs, seconds, 2) == 110
    assert seconds_to_go(jobs, {}, 2) == 0


def test_an_unknown_study_names_those_that_exist():
    with pytest.raises(UserError, match=r"study_resnet18\.yaml"):
        read_study("study_resnet81.yaml")
