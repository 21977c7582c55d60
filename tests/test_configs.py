"""Every shipped config: it parses, its networks exist, it fits what it requires, and it runs on small real data."""

from __future__ import annotations

import csv
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from compresslens.cli.configs import (
    CONFIG_DIRECTORY,
    config_chain,
    find_config,
    requirements,
    run_name,
    shipped_configs,
)
from compresslens.export import artefacts
from compresslens.networks import create_network
from compresslens.networks.taps import find_layer
from datamodules import mnist_scenes
from tests.command_line import SHORT, run
from tests.real_formats import write_cifar10, write_cifar100, write_fashion_mnist, write_image_folder, write_imagenet

CONFIGS = shipped_configs()
TRAINED = [name for name in CONFIGS if not name.startswith("attack_")]
SMALL = "test_resnet"  # timm's ResNet for tests has the stages of a real one
NETWORK_KEYS = ("architecture", "num_classes", "image_size", "stem", "output_stride")
DISTILLATION = "lightning_modules.Distillation"


@cache
def resolved(name: str) -> dict[str, Any]:
    """The whole config, as `--print_config` shows it."""
    answer = run("--config", name, "--print_config")
    assert answer.status == 0, answer.err
    return yaml.safe_load(answer.out)


def networks_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments of the student, and of the teacher if there is one."""
    model = config["model"]["init_args"]
    return [model[part]["init_args"] for part in ("network", "teacher") if model.get(part)]


def folder_of(name: str) -> str:
    """The folder of a config below `configs/`; "" for the embedded data."""
    return Path(name).parent.as_posix().removeprefix(".")


# Without running ------------------------------------------------------------------------------------------------------


def test_every_data_set_has_the_same_experiments() -> None:
    experiments = {"baseline_resnet18", "distill_resnet18", "distill_features_resnet18", "distill_cam_resnet18"}
    for folder in {folder_of(name) for name in CONFIGS}:
        here = {Path(name).stem for name in CONFIGS if folder_of(name) == folder}
        assert experiments <= here, folder
        assert "teacher_resnet34" in here or folder == "imagenet"  # whose teachers come with their weights


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("name", CONFIGS)
def test_it_parses_and_its_parts_fit(name: str) -> None:
    config = resolved(name)
    networks = networks_of(config)
    assert all(network["num_classes"] == networks[0]["num_classes"] for network in networks)
    assert config["data"]["init_args"]["image_size"] == networks[0]["image_size"]
    if config["model"]["class_path"] == DISTILLATION:
        assert len(networks) == 2
        assert networks[1]["replace_head"] is False  # a teacher with a new head knows nothing
        assert networks[1]["weights"] is not None


@pytest.mark.usefixtures("workplace")
def test_all_named_networks_and_layers_exist() -> None:
    wanted: dict[tuple[Any, ...], set[str]] = {}
    for name in CONFIGS:
        config = resolved(name)
        for role, network in zip(("student", "teacher"), networks_of(config), strict=False):
            layers = wanted.setdefault(tuple(network[key] for key in NETWORK_KEYS), set())
            for loss in config["model"]["init_args"].get("losses") or []:
                options = loss["init_args"]
                layers |= set(options.get(f"{role}_layers") or options.get("student_layers") or [])
    for arguments, layers in wanted.items():
        created = create_network(**dict(zip(NETWORK_KEYS, arguments, strict=True)))
        for layer in layers:
            find_layer(created, layer)
    assert {arguments[0] for arguments in wanted} >= {"resnet18", "resnet34", "tf_efficientnet_lite0"}


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_required_is_trained_as_it_is_used(name: str) -> None:
    """The network whose weights come from a run is the one that the required config trains, on the same data."""
    path = find_config(name)
    config = resolved(name)
    for required in requirements(config_chain(path)):
        trained = resolved(str(required.relative_to(CONFIG_DIRECTORY)))
        own = networks_of(trained)[0]
        (user,) = (n for n in networks_of(config) if n["weights"] == f"runs/{run_name(required)}/latest")
        assert {key: own[key] for key in NETWORK_KEYS} == {key: user[key] for key in NETWORK_KEYS}
        assert trained["data"] == config["data"]
    weights = [network["weights"] for network in networks_of(config)]
    assert bool(requirements(config_chain(path))) == any(str(weight).startswith("runs/") for weight in weights)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("name", [name for name in CONFIGS if "distill" in name])
def test_the_control_is_the_same_student(name: str) -> None:
    student = resolved(name)
    control = resolved(re.sub(r"distill_((features|cam|mixup)_)?", "baseline_", name))
    for key in ("network", "optimizer", "scheduler", "scheduler_interval"):
        assert student["model"]["init_args"][key] == control["model"]["init_args"][key], key
    assert student["data"] == control["data"]
    assert student["trainer"] == control["trainer"]


@pytest.mark.parametrize("name", CONFIGS)
def test_users_can_extend_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {name}\n")
    assert config_chain(path)[-1] == (path, {"extends": name})


def test_run_names_are_distinct() -> None:
    assert len({run_name(find_config(name)) for name in CONFIGS}) == len(CONFIGS)


# Running --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data where the configs look for it, `data/`, in the format of the real one."""
    root = tmp_path_factory.mktemp("real") / "data"
    write_cifar10(root)
    write_cifar100(root)
    write_fashion_mnist(root)
    write_imagenet(root / "imagenet", 2, 1, [f"n{number:08d}" for number in range(1000)])
    write_image_folder(root / "images", {"train": 3, "val": 1, "test": 1}, classes=[f"kind_{n}" for n in range(10)])
    return root


@pytest.fixture
def experiment(workplace: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the data, fewer scenes, and no formats that take long to write (other tests have them)."""
    monkeypatch.setattr(artefacts, "FORMATS", ("safetensors",))
    (workplace / "data").symlink_to(data)
    monkeypatch.setattr(mnist_scenes, "DIGITS_PER_CLASS", {"train": 4, "val": 2, "test": 2})
    return workplace


def shrunk(name: str) -> list[str]:
    """Options that make a config small, but leave its losses, optimizer and data as they are."""
    config = resolved(name)
    options = [option for option in SHORT if "precision" not in option]
    if folder_of(name) == "imagenet":
        options.append("--data.validation_samples=1000")
    for part, network in zip(("network", "teacher"), networks_of(config), strict=False):
        if network["weights"] != "package":
            options.append(f"--model.{part}.init_args.architecture={SMALL}")
        if network["weights"] == "timm" or str(network["weights"]).startswith("runs/"):
            options.append(f"--model.{part}.init_args.weights=null")
    model = config["model"]
    if model["class_path"].endswith("QuantizationAwareTraining"):
        options += [f"--model.{key}=8" for key in ("calibration_samples", "tuning_samples")]
        if model["init_args"]["tolerance"] is not None:
            options.append("--model.tolerance=null")  # there is no accuracy to keep
    if model["init_args"].get("round_to"):
        options.append("--model.round_to=1")  # narrow layers cannot be cut in eights
    return options


def slow(name: str) -> bool:
    """Whether a config is much like others: all run on the embedded data, one and its teacher on each of the rest."""
    return folder_of(name) != "" and Path(name).stem != "distill_resnet18"


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if slow(name) else ()) for name in TRAINED])
def test_it_runs_on_small_data(name: str, experiment: Path) -> None:
    options = shrunk(name)
    if requirements(config_chain(find_config(name))):
        options += ["--requires", "none"]
    answer = run("--config", name, *options)
    assert answer.status == 0, answer.err
    check_run(experiment / "runs" / run_name(find_config(name)), name)
    assert "accuracy/top1" in answer.out


@pytest.mark.parametrize("folder", ["", "cifar10"])
def test_students_find_the_teacher_of_their_own_data(folder: str, experiment: Path) -> None:
    names = {task: f"{folder}/{task}.yaml".lstrip("/") for task in ("teacher_resnet34", "distill_cam_resnet18")}
    for name in names.values():
        options = [option for option in shrunk(name) if option != "--model.teacher.init_args.weights=null"]
        answer = run("--config", name, *options)
        assert answer.status == 0, answer.err
    assert "required" not in answer.out  # the teacher was there
    prefix = f"{folder}_" if folder else ""
    runs = sorted(path.name for path in (experiment / "runs").iterdir())
    assert runs == [f"{prefix}distill_cam_resnet18", f"{prefix}teacher_resnet34"]
    teacher, student = (
        json.loads((experiment / "runs" / run / "latest/results.json").read_text()) for run in runs[::-1]
    )
    for metric in ("accuracy/top1", "accuracy/ece", "footprint/macs"):
        assert student["metrics"][metric]["reference"] == pytest.approx(teacher["metrics"][metric]["value"], rel=1e-5)


def check_run(folder: Path, name: str) -> None:
    """What a finished run must have left."""
    (run_folder,) = (entry for entry in folder.iterdir() if not entry.is_symlink())
    assert (folder / "latest").resolve() == run_folder.resolve()
    assert {"best.ckpt", "last.ckpt"} == {path.name for path in (run_folder / "checkpoints").iterdir()}
    assert (run_folder / "figures" / "training_curves.png").stat().st_size > 1000
    assert (run_folder / "samples.parquet").is_file()

    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 1
    assert "extends" not in config
    assert config["model"]["class_path"] == resolved(name)["model"]["class_path"]

    results = json.loads((run_folder / "results.json").read_text())
    assert (results["schema"], results["name"], results["seed"]) == (1, folder.name, 0)
    assert results["config"] == config
    metrics = results["metrics"]
    distilled = config["model"]["class_path"] != "lightning_modules.ImageClassifier"
    wanted = {"accuracy/top1", "accuracy/top5", "accuracy/ece", "footprint/parameters", "footprint/macs"}
    assert wanted | ({"accuracy/agreement"} if distilled else set()) <= set(metrics)
    assert metrics["accuracy/top1"]["n"] == 8
    assert (metrics["accuracy/top1"]["reference"] is not None) == distilled
    assert 0 <= metrics["accuracy/top1"]["ci95"][0] <= metrics["accuracy/top1"]["ci95"][1] <= 1

    rows = list(csv.DictReader((run_folder / "metrics.csv").open()))
    steps = [int(row["step"]) for row in rows if row["name"] == "train/loss"]
    assert steps == [0, 1]
    assert {"val/top1", "val/loss", "test/top1"} <= {row["name"] for row in rows}
