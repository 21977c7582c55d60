import sys
from pathlib import Path

import pytest

from compresslens.cli import study
from compresslens.cli.study_plan import plan, read_study
from compresslens.errors import UserError
from tests.study.study_runs import write_run

FINISHES = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.study.study_runs import write_run
folder = write_run(Path({runs_dir!r}), {name!r}, seed={seed})
(folder / "checkpoints").mkdir()
(folder / "checkpoints" / "best.ckpt").touch()
latest = folder.parent / "latest"
latest.unlink(missing_ok=True)
latest.symlink_to(folder.name)
with open({log!r}, "a") as file:
    print({name!r}, {seed}, file=file)
"""
ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def two_configs(tmp_path):
    """A study of two experiments, one of which requires a third."""
    (tmp_path / "base.yaml").write_text("{}")
    (tmp_path / "prune.yaml").write_text("requires: [base.yaml]")
    (tmp_path / "qat.yaml").write_text("{}")
    path = tmp_path / "mine.yaml"
    path.write_text("experiments: [prune.yaml, qat.yaml]\nseeds: [0, 3]\n")
    return str(path)


@pytest.fixture
def fake_training(tmp_path, monkeypatch):
    """Trainings that write a finished run at once; those named in `failing` fail. Returns what was trained."""
    failing: set[tuple[str, int]] = set()
    log = tmp_path / "log"
    log.touch()

    def command(job, options):
        if job.key in failing:
            return [sys.executable, "-c", "raise SystemExit(3)"]
        values = {"root": ROOT, "runs_dir": str(job.runs_dir), "name": job.name, "seed": job.seed, "log": str(log)}
        return [sys.executable, "-c", FINISHES.format(**values)]

    monkeypatch.setattr(study, "command", command)
    monkeypatch.setattr(study, "POLL_SECONDS", 0.01)
    return failing, lambda: [(line.split()[0], int(line.split()[1])) for line in log.read_text().splitlines()]


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
    call = study.command(job, ["--trainer.max_epochs=1"])
    assert call[2:] == [
        *("fit", "--config", str(tmp_path / "qat.yaml"), "--runs_dir", str(tmp_path / "mine" / "seed3")),
        *("--requires", "none", "--seed_everything=3", "--model.seed=3", "--data.seed=3", "--trainer.max_epochs=1"),
    ]
    write_run(job.runs_dir, "qat", finished=False)
    assert study.command(job, [])[-1] == "--resume"


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
        ("experiments: [qat.yaml]\nseeds: [-1]", "seeds must be"),
        ("experiments: [qat.yaml]\nseed: [1]", "unknown key 'seed'"),
        ("experiments: [gone.yaml]", "no config 'gone.yaml'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, content, words, capsys):
    (tmp_path / "qat.yaml").write_text("{}")
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert study.main(["--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_an_unknown_study_names_those_that_exist():
    with pytest.raises(UserError, match=r"study_resnet18\.yaml"):
        read_study("study_resnet81.yaml")
