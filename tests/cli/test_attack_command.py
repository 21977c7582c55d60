"""Attacking without training: a checkpoint, or a network with published weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from compresslens.networks import create_network
from tests.command_line import run

NOISE = """
extends: base/default.yaml
trainer: {max_epochs: 4, accelerator: cpu, enable_progress_bar: false, logger: false}
data:
  class_path: tests.lightning_modules.tiny.NoiseData
model:
  class_path: lightning_modules.ImageClassifier
  init_args:
    network: {class_path: tests.lightning_modules.tiny.TinyNetwork, init_args: {dropout: 0.0}}
    optimizer:
      class_path: torch.optim.Adam
      init_args: {lr: 0.03}
"""


def results(folder: str) -> dict[str, Any]:
    return json.loads(Path("runs", folder, "latest", "results.json").read_text())


def attack(**options: Any) -> str:
    """The option that replaces the settings of the attack."""
    return "--trainer.callbacks+=" + json.dumps([{"class_path": "callbacks.CarliniWagner", "init_args": options}])


def test_a_checkpoint_is_attacked_without_training(workplace: Path) -> None:
    Path("noise.yaml").write_text(NOISE)
    answer = run("--config", "./noise.yaml", "--trainer.callbacks=[{class_path: callbacks.BestCheckpoint}]")
    assert answer.status == 0, answer.err
    checkpoint = next(Path("runs/noise/latest/checkpoints").iterdir())
    moved = checkpoint.rename(workplace / "mine.ckpt")
    answer = run("validate", "--config", "./noise.yaml", "--ckpt_path", str(moved))
    assert answer.status == 0, answer.err
    assert "robustness/cw_median_l2" in answer.out
    found = results("noise_validate")
    metrics = found["metrics"]
    assert found["split"] == "val"
    correct = round(metrics["accuracy/top1"]["value"] * 29)
    assert metrics["robustness/cw_success"] == {
        **metrics["robustness/cw_success"],
        "value": 1.0,
        "n": correct,
        "reference": None,
    }
    assert correct > 14, "it is the trained network"
    assert metrics["robustness/cw_median_l2"]["value"] > 0
    assert found["details"]["carlini_wagner"]["settings"]["evaluations"] == 30
    assert "robustness/cw_gradients" not in metrics
    assert (Path("runs/noise_validate/latest/figures") / "carlini_wagner_success.png").is_file()

    again = attack(evaluations=5, cost_samples=6, samples=14)
    answer = run("validate", "--config", "./noise.yaml", "--ckpt_path", str(moved), again)
    assert answer.status == 0, answer.err
    metrics = results("noise_validate")["metrics"]
    assert 1 <= metrics["robustness/cw_gradients"]["n"] <= 6
    samples = pd.read_parquet("runs/noise_validate/latest/samples.parquet")
    assert samples["cw_evaluations"].dropna().eq(5).all(), "there is one attack, with the new settings"
    assert samples["cw_attacked"].notna().sum() == 14


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_published_weights_are_attacked_on_a_folder_of_photos() -> None:
    from sklearn.datasets import load_sample_images

    network = create_network("tf_efficientnet_lite0", 1000, weights="package", image_size=96).eval()
    for number, photo in enumerate(load_sample_images().images):
        for part, square in enumerate((photo[:400, :400], photo[-400:, -400:])):
            image = Image.fromarray(square).resize((110, 110), Image.Resampling.BICUBIC)
            centre = torch.from_numpy(np.array(image))[7:103, 7:103].permute(2, 0, 1)[None] / 255
            with torch.no_grad():
                label = int(network(centre).argmax())
            Path(f"photos/{label}").mkdir(parents=True, exist_ok=True)
            image.save(f"photos/{label}/{number}{part}.png")
    small = ["--data.image_size=96", "--model.network.init_args.image_size=96", "--data.num_workers=0"]
    config = ["--config", "attack_imagenet_lite0.yaml", "--data.root=photos"]
    answer = run(
        "validate", *config, *small, "--trainer.enable_progress_bar=false", attack(evaluations=12, cost_samples=0)
    )
    assert answer.status == 0, answer.err
    metrics = results("attack_imagenet_lite0_validate")["metrics"]
    assert metrics["accuracy/top1"]["value"] == 1.0, "labels are numbered as the weights number them"
    assert (metrics["robustness/cw_success"]["value"], metrics["robustness/cw_success"]["n"]) == (1.0, 4)
    assert 0 < metrics["robustness/cw_mean_l2"]["value"] < 2


def test_there_is_nothing_to_train_on(workplace: Path) -> None:
    (workplace / "photos" / "1").mkdir(parents=True)
    Image.new("RGB", (230, 230)).save(workplace / "photos" / "1" / "a.png")
    error = run("--config", "attack_imagenet_lite0.yaml", "--data.root=photos").error
    assert "ImageNetPhotos is for evaluation" in error
    resolved = run("--config", "attack_imagenet_lite0.yaml", "--print_config")
    assert yaml.safe_load(resolved.out)["data"]["init_args"]["root"] == "data/photos"
