from __future__ import annotations

from pathlib import Path

import pytest

from compresslens.reporting.wandb_description import Description, describe, origins, read_config, without_home
from lightning_modules import Distillation


class MyDistillation(Distillation):
    """Somebody's own."""


def config(module: str) -> dict[str, object]:
    network = {"class_path": "compresslens.networks.create_network", "init_args": {"architecture": "resnet18"}}
    return {
        "seed_everything": 3,
        "model": {"class_path": module, "init_args": {"network": network}},
        "data": {"class_path": "datamodules.CIFAR10"},
    }


@pytest.mark.parametrize(
    ("module", "job_type"),
    [
        ("lightning_modules.ImageClassifier", "training"),
        ("lightning_modules.Distillation", "distillation"),
        ("lightning_modules.PruneAndFinetune", "pruning"),
        ("lightning_modules.QuantizationAwareTraining", "quantization"),
        ("lightning_modules.FactorizeAndFinetune", "low_rank"),
        (f"{__name__}.MyDistillation", "distillation"),
    ],
)
def test_a_run_is_described_by_its_folder_and_config(module: str, job_type: str) -> None:
    found = describe(Path("runs/experiment/20260101-120000"), config(module))
    assert found == Description("experiment", job_type, [job_type, "resnet18", "CIFAR10", "seed3"])


@pytest.mark.parametrize("seed", [0, 12])
def test_the_seeds_of_an_experiment_in_a_study_share_a_group(seed: int) -> None:
    found = describe(
        Path(f"runs/study/seed{seed}/experiment/20260101-120000"), config("lightning_modules.Distillation")
    )
    assert found.group == "study-experiment"
    assert found.tags == ["distillation", "resnet18", "CIFAR10", "seed3", "study"]


@pytest.mark.parametrize(
    "module", ["torch.nn.Linear", "no_such_module.Class", "lightning_modules.Missing", "", "Class"]
)
def test_what_is_unknown_is_left_out(module: str) -> None:
    assert describe(Path("runs/a/b"), {"model": {"class_path": module}}) == Description("a", None, [])
    assert describe(Path("runs/a/b"), {}) == Description("a", None, [])
    assert describe(Path("runs/a/b"), {"model": None, "data": [], "seed_everything": True}).tags == []


def test_a_network_of_ones_own_is_named_by_its_class_and_tags_are_not_too_long() -> None:
    network = {"class_path": f"mine.{'Network' * 20}", "init_args": {"width": 3}}
    found = describe(Path("runs/a/b"), {"model": {"class_path": "mine.Module", "init_args": {"network": network}}})
    assert found.tags == [("Network" * 20)[:64]]


def test_the_config_is_read_if_it_is_there(tmp_path: Path) -> None:
    assert read_config(tmp_path) == {}
    (tmp_path / "config.yaml").write_text("- a list\n")
    assert read_config(tmp_path) == {}
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert read_config(tmp_path) == {"a": 1}


def test_origins_are_checkpoints_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "baseline"):
        run = tmp_path / "runs" / name / "20260101-120000"
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "best.ckpt").touch()
        (run / "config.yaml").touch()
        (run.parent / "latest").symlink_to(run.name)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "other.ckpt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))

    arguments = {
        "network": {"init_args": {"weights": "runs/baseline/20260101-120000/checkpoints/best.ckpt"}},
        "teacher": {"init_args": {"weights": "runs/teacher/latest"}},
        "again": [{"weights": "~/runs/teacher/20260101-120000"}],
        "others": [{"weights": text} for text in ("timm", "package", "checkpoints/other.ckpt", "runs/lost/latest")],
        "none": {"weights": None},
    }
    best = "20260101-120000/checkpoints/best.ckpt"
    assert origins({"model": {"init_args": arguments}}) == [
        tmp_path / "runs" / "baseline" / best,
        tmp_path / "runs" / "teacher" / best,
    ]
    assert origins({}) == []


def test_home_is_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {"a": [tmp_path / "x", (f"{tmp_path}/y", 1)], "b": {"c": None}}
    assert without_home(values) == {"a": ["~/x", ["~/y", 1]], "b": {"c": None}}
