"""The examples of the documentation run, and their own tests pass."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.command_line import SHORT, run
from tests.docs.pages import DOCS, FILES
from tests.real_formats import write_image_folder

SMALL = "architecture=test_resnet"
LITTLE = [*SHORT, "--trainer.accelerator=cpu", "--trainer.logger=false"]


def only(*callbacks: str) -> str:
    """The option that leaves just these callbacks, and what writes the results."""
    names = [*callbacks, "BestCheckpoint", "Results"]
    return "--trainer.callbacks=" + json.dumps([{"class_path": f"callbacks.{name}"} for name in names])


def results(name: str) -> dict[str, Any]:
    return json.loads(Path("runs", name, "latest", "results.json").read_text())


def run_tests_of(module: ModuleType, folder: Path) -> int:
    """Calls the test functions of an example; returns their number."""
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    for number, test in enumerate(tests):
        place = folder / str(number)
        place.mkdir()
        test(**({"tmp_path": place} if "tmp_path" in inspect.signature(test).parameters else {}))
    return len(tests)


@pytest.mark.parametrize(("test", "count"), [("test_share_weights", 5), ("test_noisy_accuracy", 4)])
def test_tests_of_the_examples_pass(test: str, count: int, examples: Path) -> None:
    assert run_tests_of(importlib.import_module(test), examples) == count


@pytest.mark.slow
def test_own_method(examples: Path) -> None:
    small = [f"--model.network.init_args.{option}" for option in (SMALL, "weights=null")]
    answer = run("--config", "./share_resnet18.yaml", "--requires", "none", *LITTLE, *small, only("Accuracy"))
    assert answer.status == 0, answer.err
    state = torch.load("runs/share_resnet18/latest/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    weights = {name: weight for name, weight in state.items() if name.startswith("model.") and weight.ndim > 1}
    assert len(weights) > 5
    assert all(len(weight.unique()) <= 16 for weight in weights.values())
    assert "accuracy/agreement" in results("share_resnet18")["metrics"], "it is held against what it was"


def test_own_probe(examples: Path) -> None:
    parts = [f"--model.{part}.init_args.{SMALL}" for part in ("network", "teacher")]
    answer = run(
        *("test", "--config", "./noisy.yaml", "--name", "distill_resnet18", "--requires", "none"),
        *(*LITTLE, *parts, "--model.teacher.init_args.weights=null"),
    )
    assert answer.status == 0, answer.err
    found = results("distill_resnet18_test")
    assert found["metrics"]["noise/accuracy"]["n"] == 8
    assert found["details"]["noise"]["sigma"] == 0.2


def write_npz(root: Path) -> None:
    """30 images of three classes in each split."""
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("red green blue\n")
    generator = np.random.default_rng(0)
    labels = np.arange(30) % 3
    masks = np.zeros((30, 64, 64), bool)
    masks[:, 16:40, 16:40] = True
    for split in ("train", "val", "test"):
        images = generator.integers(0, 100, (30, 3, 64, 64), dtype=np.uint8)
        images[np.arange(30), labels] += (100 * masks).astype(np.uint8)
        np.savez(root / f"{split}.npz", images=images, labels=labels, masks=masks)


def test_own_data(examples: Path) -> None:
    write_npz(examples / "data" / "npz")
    answer = run("--config", "./npz.yaml", *LITTLE, f"--model.network.init_args.{SMALL}", only("ClassActivationMaps"))
    assert answer.status == 0, answer.err
    metrics = results("npz")["metrics"]
    assert metrics["cam/energy_in_mask"]["n"] == 8, "the masks arrived"
    answer = run("--config", "./npz.yaml", "--data.root", "elsewhere")
    assert (
        answer.error
        == "elsewhere/train.npz is missing; data.root must hold train.npz, val.npz, test.npz and classes.txt"
    )


@pytest.mark.slow
def test_own_folder_of_images(examples: Path) -> None:
    kinds = [f"kind_{number:02}" for number in range(17)]
    write_image_folder(examples / "flowers", {"": 3}, masks=examples / "masks", classes=kinds, size=(70, 70))
    config = yaml.safe_load(FILES["flowers.yaml"])
    config["data"]["init_args"] |= {"root": "flowers", "masks": "masks", "image_size": 64}
    for part in ("network", "teacher"):
        arguments = config["model"]["init_args"][part]["init_args"]
        arguments |= {"architecture": "test_resnet", "image_size": 64, "weights": None}
    (examples / "flowers.yaml").write_text(yaml.safe_dump(config))
    answer = run("validate", "--config", "./flowers.yaml", *LITTLE, only("ClassActivationMaps"))
    assert answer.status == 0, answer.err
    assert results("flowers_validate")["metrics"]["cam/pointing_game"]["n"] > 0


@pytest.mark.slow
def test_own_model(examples: Path) -> None:
    """It is trained, and what required it finds its weights."""
    answer = run("--config", "./small_net.yaml", *LITTLE)
    assert answer.status == 0, answer.err
    answer = run("--config", "./prune_small_net.yaml", *LITTLE)
    assert answer.status == 0, answer.err
    assert "is required" not in answer.out, "it is there"
    macs = results("prune_small_net")["metrics"]["footprint/macs"]
    assert macs["value"] == pytest.approx(macs["reference"] / 2, rel=0.01)
    described = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in results("prune_small_net")["metrics"] if f"`{plain(name)}`" not in described] == []


def plain(metric: str) -> str:
    """The name of a metric as the page of metrics has it: one line for all runtimes and formats."""
    name = re.sub(r"^(footprint/latency_ms)_\w+_b\d+$", r"\1_<runtime>_b<batch>", metric)
    return re.sub(r"^(footprint/bytes)_\w+$", r"\1_<format>", name)
