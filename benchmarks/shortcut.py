"""Whether class activation maps give away a network that goes by the background.

    python benchmarks/shortcut.py                               # trains two ResNet-18; some ten minutes a seed
    python benchmarks/shortcut.py --pictures docs/images        # and draws
    python benchmarks/shortcut.py --seeds 0 1 2                 # once more with other weights, scenes, splits and order

`train.py` runs baseline_resnet18.yaml twice for each seed, without probes: as it is ("control"), and with
`--data.shortcut 0.95` ("shortcut"), where 95 % of the training images have a background from the part of the
photographs kept for their class. Initial weights, digits and their order are the same. Finished runs are not repeated.

Both networks then look at the same images: the 1,000 test digits, on three kinds of backgrounds:

- shortcut: the training split's, of the digit's class for 95 % of the images; what one holds out who does not know;
- same photos: the training split's, drawn at random, so that they say nothing;
- test split: of parts of the photographs that neither has seen, drawn at random; what `train.py` tests on.

Maps are Grad-CAM, of the true class and of the predicted one. Differences are shortcut minus control, in pairs of the
same image; the intervals (95 %, bootstrap) are over images, for these two networks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from shortcut_figure import draw_energy, draw_maps
from torch import Tensor, nn

from compresslens.cams import maps_and_logits
from compresslens.cams.localization import energy_in_mask, mask_area, pointing_game
from compresslens.networks import create_network
from compresslens.statistics import bootstrap_interval, paired_difference_interval, wilson_interval
from datamodules import MNISTScenes
from datamodules.mnist_scenes import SceneDataset

ROOT = Path(__file__).resolve().parent.parent
SHORTCUT = 0.95
TRAINED = {"control": 0.0, "shortcut": SHORTCUT}
CONFIG = f"""
extends: [{ROOT}/configs/baseline_resnet18.yaml]
trainer:
  logger: false
  callbacks:
    - class_path: callbacks.LastCheckpoint
    - class_path: callbacks.Accuracy
    - class_path: callbacks.Results
"""
NETWORK: dict[str, Any] = {"architecture": "resnet18", "image_size": 64, "stem": "imagenet", "output_stride": 16}
BATCH = 100
ACCURATE, AS_ACCURATE = 0.9, 0.03


@dataclass(frozen=True)
class Looks:
    """How a network sees N images: maps of the true class N×H×W, and values for each image."""

    maps: Tensor
    probability: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    energy: npt.NDArray[np.float64]
    energy_of_predicted: npt.NDArray[np.float64]
    pointing: npt.NDArray[np.float64]


def main() -> int:
    """Prints a table for each seed, and the checks; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"))
    parser.add_argument("--pictures", type=Path, help="folder for the pictures of the first seed")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    passed = True
    for seed in arguments.seeds:
        networks = {name: trained(shortcut, seed, arguments.runs_dir) for name, shortcut in TRAINED.items()}
        found = {name: (data, look(networks, data)) for name, data in backgrounds(seed)}
        figures[str(seed)] = {name: compared(looks, data) for name, (data, looks) in found.items()}
        print_table(seed, figures[str(seed)])
        for holds, text in checks(figures[str(seed)]):
            print(f"{'passed' if holds else 'FAILED':8}{text}", flush=True)
            passed &= holds
        if arguments.pictures and seed == arguments.seeds[0]:
            draw_maps(arguments.pictures / "shortcut_maps.png", *found["shortcut"])
            draw_energy(arguments.pictures / "shortcut_energy.png", found["shortcut"][1], figures[str(seed)])
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1, allow_nan=False))
    return int(not passed)


def trained(shortcut: float, seed: int, runs_dir: Path) -> nn.Module:
    """The network after the last epoch: the best one is chosen on images without the shortcut."""
    name = f"shortcut_{shortcut}_seed_{seed}"
    run = runs_dir / name / "latest"
    if not run.exists():
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "config.yaml"
            config.write_text(CONFIG)
            command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--name", name]
            command += ["--runs_dir", str(runs_dir.resolve()), "--data.shortcut", str(shortcut)]
            command += ["--seed_everything", str(seed), "--data.seed", str(seed), "--model.seed", str(seed)]
            subprocess.run(command, cwd=ROOT, check=True)
    return create_network(num_classes=10, weights=str(run / "checkpoints" / "last.ckpt"), **NETWORK).eval()


def backgrounds(seed: int) -> Iterator[tuple[str, SceneDataset]]:
    """The test digits on each kind of background."""
    plain, biased = (MNISTScenes(shortcut=shortcut).style for shortcut in (0.0, SHORTCUT))
    yield "shortcut", SceneDataset("test", biased, seed, backgrounds="train")
    yield "same photos", SceneDataset("test", plain, seed, backgrounds="train")
    yield "test split", SceneDataset("test", plain, seed)


def look(networks: dict[str, nn.Module], data: SceneDataset) -> dict[str, Looks]:
    """How each network sees the images."""
    images, labels = data.images.float() / 255, torch.from_numpy(data.targets)
    found = {}
    for name, network in networks.items():
        of_true = [
            maps_and_logits(network, batch, classes)
            for batch, classes in zip(images.split(BATCH), labels.split(BATCH), strict=True)
        ]
        maps, logits = (torch.cat(parts) for parts in zip(*of_true, strict=True))
        of_predicted = torch.cat([maps_and_logits(network, batch)[0] for batch in images.split(BATCH)])
        found[name] = Looks(
            maps=maps,
            probability=logits.double().softmax(1).gather(1, labels[:, None])[:, 0].numpy(),
            predicted=logits.argmax(1).numpy(),
            right=(logits.argmax(1) == labels).numpy(),
            energy=energy_in_mask(maps, data.masks).numpy(),
            energy_of_predicted=energy_in_mask(of_predicted, data.masks).numpy(),
            pointing=pointing_game(maps, data.masks).numpy(),
        )
    return found


def compared(looks: dict[str, Looks], data: SceneDataset) -> dict[str, Any]:
    """Means and paired differences, with intervals."""
    found: dict[str, Any] = {"n": len(data), "mask_area": mask_area(data.masks).mean().item()}
    for measure in ("right", "energy", "energy_of_predicted", "pointing"):
        values = {name: getattr(of_network, measure).astype(np.float64) for name, of_network in looks.items()}
        found[measure] = {name: mean_with_interval(of_network, measure) for name, of_network in values.items()}
        change = values["shortcut"] - values["control"]
        interval = paired_difference_interval(values["shortcut"], values["control"])
        found[measure]["change"] = {"value": float(change.mean()), "ci95": list(interval)}
    return found


def mean_with_interval(values: npt.NDArray[np.float64], measure: str) -> dict[str, Any]:
    """Accuracy is a proportion; the others are means."""
    interval = wilson_interval(int(values.sum()), len(values)) if measure == "right" else bootstrap_interval(values)
    return {"value": float(values.mean()), "ci95": list(interval)}


def print_table(seed: int, figures: dict[str, Any]) -> None:
    """A line for each kind of background and measure."""
    names = {"right": "accuracy", "energy": "energy in mask", "pointing": "pointing game"}
    names["energy_of_predicted"] = "energy, predicted class"
    print(
        f"\nseed {seed}\n{'backgrounds':14}{'measure':26}{'control':>10}{'shortcut':>10}{'change':>10}   95 % interval"
    )
    for background, measures in figures.items():
        for measure, name in names.items():
            of = measures[measure]
            low, high = of["change"]["ci95"]
            values = "".join(f"{of[key]['value']:10.3f}" for key in ("control", "shortcut"))
            print(f"{background:14}{name:26}{values}{of['change']['value']:+10.3f}   {low:+.3f} to {high:+.3f}")
        print(f"{'':14}{'object, share of image':26}{measures['mask_area']:10.3f}\n")


def checks(figures: dict[str, Any]) -> list[tuple[bool, str]]:
    """What the maps must show, and accuracy must not."""
    seen, unseen = figures["shortcut"], figures["same photos"]
    misled, control = seen["right"]["shortcut"]["value"], seen["right"]["control"]["value"]
    outcome = [
        (min(misled, unseen["right"]["control"]["value"]) > ACCURATE, "both are right on what they were trained for"),
        (misled > control - AS_ACCURATE, f"on images with the shortcut accuracy hides it: {misled:.3f}, {control:.3f}"),
        (unseen["right"]["change"]["ci95"][1] < 0, "on images without the shortcut the accuracy is lower"),
    ]
    for background in ("shortcut", "test split"):
        low, high = figures[background]["energy"]["change"]["ci95"]
        outcome.append((high < 0, f"{background}: energy in mask is lower, {low:+.3f} to {high:+.3f}"))
    return outcome


if __name__ == "__main__":
    sys.exit(main())
