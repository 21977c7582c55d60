"""How near, how certain and how fast: our solvers of Carlini & Wagner's problem beside the peers'.

    python benchmarks/carlini_wagner.py --cache runs/benchmark                     # everything; half an hour
    python benchmarks/carlini_wagner.py --samples 64 --attacks projection_40 foolbox_ddn_100 --networks standard
    python benchmarks/carlini_wagner.py --resnet18 --networks                      # only our overhead, large network

The script trains a standard and an L2-adversarially trained network on the embedded data, and puts fake quantizers into
a copy of the first. All attacks get the same images, which the network classifies correctly, in one process and one
thread. Between any two attacks `projection_40` runs again, and ratios of times are to its runs just before and after.

What an attack returns is judged by a forward pass of this script: it counts if it lies in [0, 1] (within 1e-6) and is
misclassified; its distance is taken in float64. Median and mean L2 are over all images; where an attack failed, the
distance is infinite. A gradient evaluation is one image going backward through the network, a forward pass one image
going forward; both are counted outside of the attacks, in a module around the network. The overhead is the time of an
attack over gradient evaluations × what one takes by itself (forward and backward with frozen parameters, at the
attack's batch size, measured just before and after it).

Peers get the network in eval mode with its parameters as training left them, as they do in use (`--frozen` freezes
them). Their extra is `bench`. adv-lib requires visdom, of which Python 3.11 has no release that builds with today's
setuptools; there: `pip install wheel "setuptools<81"`, then `pip install --no-build-isolation adv-lib`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from carlini_wagner_attacks import ATTACKS, BASE, CHUNK, missing
from carlini_wagner_checks import Check, checks, linear_check, overhead_check
from carlini_wagner_networks import LEAST_ACCURACY, predictions, prepare
from common import say, versions
from torch import Tensor, nn

from compresslens.attacks import AttackResult
from compresslens.export.latency import processor
from compresslens.networks import create_network

OUTSIDE = 1e-6
OWN_PASSES = 5
DISTRIBUTIONS = ("torch", "foolbox", "torchattacks", "adversarial-robustness-toolbox", "adv-lib")


class Counted(nn.Module):
    """Counts the images that go forward and backward through a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        logits = self.network(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradients: Tensor) -> None:
        self.backwards += len(gradients)


@dataclass
class Figures:
    """What was measured of an attack on a network.

    Attributes:
        l2: distances, one per image; infinite where it failed.
        gradients, forwards: per image, as counted.
        reported: most gradient evaluations of any image that the attack itself reports (ours only).
        seconds: CPU seconds of each run.
        ratios: of each run, to the runs of `BASE` before and after.
        own: seconds of a gradient evaluation of one image by itself, around each run.
    """

    l2: list[float]
    gradients: float
    forwards: float
    reported: int | None
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)

    @property
    def success(self) -> float:
        return statistics.fmean(math.isfinite(distance) for distance in self.l2)

    @property
    def median(self) -> float:
        return statistics.median(self.l2)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.l2)

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios) if self.ratios else 1.0

    @property
    def overhead(self) -> float:
        spent = self.gradients * len(self.l2)
        return statistics.median(s / (spent * own) for s, own in zip(self.seconds, self.own, strict=True))

    def as_json(self) -> dict[str, Any]:
        """Plain values; None where a distance is infinite."""
        names = ("success", "median", "mean", "gradients", "forwards", "reported", "seconds", "ratio", "overhead", "l2")
        values = {name: getattr(self, name) for name in names}
        values["l2"] = [finite(distance) for distance in self.l2]
        return {name: finite(value) if isinstance(value, float) else value for name, value in values.items()}


def finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None


def main() -> int:
    """Prints a table for each network, then the checks; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128, help="images per network")
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), metavar="NAME", help=f"of: {', '.join(ATTACKS)}")
    parser.add_argument("--networks", nargs="*", choices=list(LEAST_ACCURACY), default=list(LEAST_ACCURACY))
    parser.add_argument("--rounds", type=int, default=3, help="runs of each quick attack")
    parser.add_argument("--cache", type=Path, help="folder for the trained networks")
    parser.add_argument("--json", type=Path, help="file for all figures, written after each network")
    parser.add_argument("--frozen", action="store_true", help="freeze the parameters for the peers, too")
    parser.add_argument("--resnet18", action="store_true", help="also our overhead on ResNet-18, 16 images of 224x224")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread; {versions(DISTRIBUTIONS)}")
    networks, test = prepare(arguments.networks, arguments.cache) if arguments.networks else ({}, None)
    found: dict[str, dict[str, Figures]] = {}
    for name, network in networks.items():
        assert test is not None
        network.requires_grad_(not arguments.frozen)
        images, labels = correct(network, test, arguments.samples)
        found[name] = compare(name, network, images, labels, chosen(arguments.attacks, name), arguments.rounds)
        print_table(name, found[name], len(images))
        write(arguments.json, found, [])
    outcome = checks(found)
    if arguments.networks:
        outcome.append(linear_check(verified))
    if arguments.resnet18:
        outcome.append(resnet18_check())
    print()
    for check in outcome:
        print(f"{check.verdict:12}{check.text}")
    write(arguments.json, found, outcome)
    return int(any(check.passed is False for check in outcome))


def chosen(wanted: list[str] | None, network: str) -> list[str]:
    """Names of the attacks to run on a network, without those that are not installed."""
    names = [name for name in ATTACKS if (name in wanted if wanted else network in ATTACKS[name].networks)]
    absent = sorted({ATTACKS[name].package for name in names if missing(ATTACKS[name].package)})
    if absent:
        say(f"left out, since not installed: {', '.join(absent)} (see the extra `bench` and --help)")
    return [name for name in names if ATTACKS[name].package not in absent]


def correct(network: nn.Module, test: tuple[Tensor, Tensor], samples: int) -> tuple[Tensor, Tensor]:
    """Test images in a fixed random order, the first that the network classifies correctly, and their labels."""
    order = torch.randperm(len(test[0]), generator=torch.Generator().manual_seed(1))
    images, labels = test[0][order], test[1][order]
    rows = torch.nonzero(predictions(network, images) == labels)[:samples, 0]
    if len(rows) < samples:
        sys.exit(f"only {len(rows)} test images are classified correctly: choose fewer --samples")
    return images[rows], labels[rows]


def compare(
    where: str, network: nn.Module, images: Tensor, labels: Tensor, names: list[str], rounds: int
) -> dict[str, Figures]:
    """Runs attacks in turns, with `BASE` in between."""
    generator = random.Random(0)
    quick = [name for name in names if ATTACKS[name].quick and name != BASE]
    turns = [name for _ in range(rounds) for name in generator.sample(quick, len(quick))]
    turns += [name for name in names if not ATTACKS[name].quick]
    found: dict[str, Figures] = {}
    once(BASE, network, images, labels, {})  # warms up
    before = once(BASE, network, images, labels, found)
    for name in turns:
        try:
            seconds = once(name, network, images, labels, found)
        except Exception as error:
            if ATTACKS[name].package == "compresslens":
                raise
            say(f"{where}: {name} does not run: {type(error).__name__}: {error}")
            continue
        after = once(BASE, network, images, labels, found)
        found[name].ratios.append(seconds / statistics.fmean((before, after)))
        before = after
        figures = found[name]
        say(f"{where}: {name}: median {figures.median:.4f}, mean {figures.mean:.4f}, {figures.ratios[-1]:.2f} x time")
    return {name: found[name] for name in ATTACKS if name in found}


def once(name: str, network: nn.Module, images: Tensor, labels: Tensor, found: dict[str, Figures]) -> float:
    """Runs one attack, and enters what it found and took; returns the CPU seconds."""
    attack = ATTACKS[name]
    batch = min(CHUNK, len(images)) if attack.package == "compresslens" else len(images)
    counted = Counted(network).eval()
    torch.manual_seed(0)
    own = gradient_seconds(network, images[:batch])
    began = time.process_time()
    result = attack.run(counted, images, labels)
    seconds = time.process_time() - began
    own = (own + gradient_seconds(network, images[:batch])) / 2
    network.eval().zero_grad(set_to_none=True)
    if name not in found:
        reported = int(result.gradient_evaluations.max()) if isinstance(result, AttackResult) else None
        adversarials = result.adversarials if isinstance(result, AttackResult) else result
        l2 = verified(network, images, labels, adversarials)
        found[name] = Figures(l2, counted.backwards / len(images), counted.forwards / len(images), reported)
    found[name].seconds.append(seconds)
    found[name].own.append(own)
    return seconds


def gradient_seconds(network: nn.Module, images: Tensor) -> float:
    """CPU seconds that one image takes forward and backward through the network, with frozen parameters."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.requires_grad_(False)
    times = []
    for _ in range(1 + OWN_PASSES):
        points = images.clone().requires_grad_(True)
        began = time.process_time()
        torch.autograd.grad(network(points).amax(1).sum(), points)
        times.append(time.process_time() - began)
    for parameter in trainable:
        parameter.requires_grad_(True)
    return statistics.median(times[1:]) / len(images)


@torch.no_grad()
def verified(network: nn.Module, images: Tensor, labels: Tensor, adversarials: Tensor) -> list[float]:
    """L2 distances; infinite where an image is outside of [0, 1] or not misclassified."""
    points = adversarials.detach().to(images.dtype).contiguous()
    inside = ((points >= -OUTSIDE) & (points <= 1 + OUTSIDE)).flatten(1).all(1)
    fooled = inside & (network(points).argmax(1) != labels)
    distances = (points.double() - images.double()).flatten(1).norm(dim=1)
    return torch.where(fooled, distances, torch.inf).tolist()


def resnet18_check() -> Check:
    """Our overhead where the network is large; its weights are random, which does not matter for the time."""
    from artefacts import photo_crops, settle

    torch.manual_seed(0)
    images = photo_crops(16)
    network = create_network("resnet18", num_classes=1000, image_size=224)
    settle(network, images)
    labels = predictions(network.eval(), images)
    found: dict[str, Figures] = {}
    once(BASE, network, images, labels, found)
    print_table("resnet18, 224x224, random weights", found, len(images))
    return overhead_check("resnet18", BASE, found[BASE])


def print_table(name: str, found: dict[str, Figures], samples: int) -> None:
    """One line per attack."""
    print(f"\n{name}, {samples} images")
    columns = ("success", "median L2", "mean L2", "gradients", "forwards", "CPU s", "x time", "overhead")
    print(f"{'attack':26}" + "".join(f"{column:>11}" for column in columns))
    for attack, figures in found.items():
        l2 = (f"{figures.success:.1%}", f"{figures.median:.4f}", f"{figures.mean:.4f}")
        spent = (f"{figures.gradients:.1f}", f"{figures.forwards:.1f}", f"{statistics.median(figures.seconds):.2f}")
        values = (*l2, *spent, f"{figures.ratio:.2f}", f"{figures.overhead:.3f}")
        print(f"{attack:26}" + "".join(f"{value:>11}" for value in values), flush=True)


def write(file: Path | None, found: dict[str, dict[str, Figures]], outcome: list[Check]) -> None:
    """All figures as JSON."""
    if file is None:
        return
    networks = {
        network: {attack: figures.as_json() for attack, figures in of_network.items()}
        for network, of_network in found.items()
    }
    plain = [{"passed": check.passed, "text": check.text} for check in outcome]
    content = {"processor": processor(), "versions": versions(DISTRIBUTIONS), "networks": networks, "checks": plain}
    file.write_text(json.dumps(content, indent=1, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())
