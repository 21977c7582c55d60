"""How fast, and in how much memory: our class activation maps beside those of three libraries.

    python benchmarks/cam.py                                               # everything; about ten minutes
    python benchmarks/cam.py --networks resnet18 --rounds 3 --batch 4      # a trial

timm's ResNet-18 and ResNet-50 with random weights, which do not matter for the time; images of 224×224; maps of the
predicted classes at the images' size. Peers are pytorch-grad-cam (`grad-cam`), captum and torchcam (extra `bench`), as
their documentation has it, with maps enlarged to the images' size where the library leaves that to the user.

Time: all methods of a network and a plain forward pass (eval mode, `torch.no_grad`) take turns in one process and one
thread, in an order drawn anew for each round. Printed are ratios of medians of CPU seconds. Peers need the name of the
layer; ours is timed without one ("compresslens") and with it.

Memory: PyTorch's profiler records each allocation and release of the CPU's allocator. From their running sum, "kept" is
a method's peak above that of the plain forward pass. What numpy and cv2 allocate is not in it.

Then each library is asked for maps of a network with frozen parameters, within `torch.no_grad` and within
`torch.inference_mode`, and the maps are compared with those that it gives without (Pearson correlation above 0.999).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from cam_methods import METHODS, OURS, OURS_NAMED, PACKAGES, libraries
from common import say, versions
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from compresslens.export.latency import processor

SIZE = 224
NETWORKS = ("resnet18", "resnet50")
DISTRIBUTIONS = ("torch", "timm", "grad-cam", "captum", "torchcam")
FORWARD = "forward"
FASTER, OF_FORWARD, KEPT = 3.0, 1.08, 5e6
EQUAL = 1e-5
SAME = 0.999


@dataclass(frozen=True)
class Row:
    """What was measured of one library and method; `difference`: the largest to our maps, where it should be none."""

    network: str
    method: str
    library: str
    images_per_second: float
    of_forward: float
    kept: float
    difference: float | None


@dataclass(frozen=True)
class Check:
    """What must hold."""

    text: str
    passed: bool


def main() -> int:
    """Prints a table for each network, what works where, and the checks; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each method")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread, batch {arguments.batch}, {SIZE}x{SIZE}; {versions(DISTRIBUTIONS)}")
    absent = [name for name, package in PACKAGES.items() if not is_installed(package)]
    if absent:
        print(f"left out, since not installed: {', '.join(absent)}")
    rows: list[Row] = []
    for name in arguments.networks:
        rows += measure(name, arguments.batch, arguments.rounds)
        print_table(name, [row for row in rows if row.network == name])
    works = what_works()
    print_works(works)
    outcome = checks(rows, works)
    print()
    for check in outcome:
        print(f"{'PASS' if check.passed else 'FAIL':6}{check.text}")
    if arguments.json:
        content = {
            "processor": processor(),
            "versions": versions(DISTRIBUTIONS),
            "batch": arguments.batch,
            "rounds": arguments.rounds,
            "rows": [asdict(row) for row in rows],
            "works": works,
            "checks": [asdict(check) for check in outcome],
        }
        arguments.json.write_text(json.dumps(content, indent=1))
    return int(not all(check.passed for check in outcome))


def build(name: str) -> nn.Module:
    """A network as timm has it, with weights from a seed."""
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def measure(name: str, batch: int, rounds: int) -> list[Row]:
    """All methods of all libraries on one network."""
    network = build(name)
    images = torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    calls: dict[tuple[str, str], Callable[[], Any]] = {(FORWARD, ""): lambda: forward(network, images)}
    for method in METHODS:
        for library, entry in libraries(method).items():
            calls[method, library] = lambda maps=entry.maps: maps(network, images)  # type: ignore[misc]
    peaks = {key: peak(call) for key, call in calls.items()}  # warms up
    network.zero_grad(set_to_none=True)
    seconds = in_turns(calls, rounds)
    plain = seconds[FORWARD, ""]
    rows = [Row(name, FORWARD, "", batch / plain, 1.0, 0.0, None)]
    for method in METHODS:
        reference = libraries(method)[OURS].maps(network, images)
        for library, entry in libraries(method).items():
            difference = None
            if entry.same_scale:
                difference = float((entry.maps(network, images) - reference).abs().max())
            took = seconds[method, library]
            kept = peaks[method, library] - peaks[FORWARD, ""]
            rows.append(Row(name, method, library, batch / took, took / plain, kept, difference))
    return rows


@torch.no_grad()
def forward(network: nn.Module, images: Tensor) -> Tensor:
    """What is computed anyway."""
    return network(images)


def in_turns(calls: dict[tuple[str, str], Callable[[], Any]], rounds: int) -> dict[tuple[str, str], float]:
    """Median CPU seconds of each call."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    order, generator = list(calls), random.Random(0)
    for number in range(rounds):
        generator.shuffle(order)
        for key in order:
            began = time.process_time()
            calls[key]()
            times[key].append(time.process_time() - began)
        say(f"round {number + 1} of {rounds}")
    return {key: statistics.median(values) for key, values in times.items()}


def peak(call: Callable[[], Any]) -> float:
    """Bytes that the call has allocated at its height, beyond what there was."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    height = now = 0
    for _, change in changes:
        now += change
        height = max(height, now)
    return float(height)


def what_works() -> dict[str, dict[str, str]]:
    """By library: what became of Grad-CAM in each circumstance."""
    images = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    modes = {"frozen": nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    found: dict[str, dict[str, str]] = {}
    for library, entry in libraries("grad_cam").items():
        expected = entry.maps(build("resnet18"), images).detach()
        found[library] = {}
        for name, mode in modes.items():
            network = build("resnet18").requires_grad_(name != "frozen")
            try:
                with mode():
                    maps = entry.maps(network, images.clone())
            except Exception as error:
                found[library][name] = f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
                continue
            same = correlation(maps.detach().clone(), expected)
            found[library][name] = "works" if same > SAME else f"other maps (correlation {same:.3f})"
    return found


def correlation(maps: Tensor, others: Tensor) -> float:
    """Pearson's, over all pixels of all maps."""
    return float(torch.corrcoef(torch.stack([maps.flatten(), others.flatten()]))[0, 1])


def checks(rows: list[Row], works: dict[str, dict[str, str]]) -> list[Check]:
    """What the project promises, for each network and method."""
    outcome = []
    for own in [row for row in rows if row.library == OURS]:
        where = f"{own.network}, {own.method}:"
        peers = {row.library: row for row in rows if (row.network, row.method) == (own.network, own.method)}
        outcome.append(
            Check(f"{where} {own.of_forward:.3f} of a forward pass (≤ {OF_FORWARD})", own.of_forward <= OF_FORWARD)
        )
        outcome.append(Check(f"{where} {own.kept / 1e6:.1f} MB kept (≤ {KEPT / 1e6:.0f})", own.kept <= KEPT))
        for name in ("captum", "torchcam"):
            if name in peers:
                ratio = peers[name].of_forward / own.of_forward
                outcome.append(Check(f"{where} {ratio:.3f} × as fast as {name} (≥ 1)", ratio >= 1))
        if slow := peers.get("pytorch-grad-cam"):
            ratio, difference = slow.of_forward / own.of_forward, slow.difference
            outcome.append(Check(f"{where} {ratio:.2f} × as fast as pytorch-grad-cam (≥ {FASTER})", ratio >= FASTER))
            equal = difference is not None and difference <= EQUAL
            outcome.append(Check(f"{where} differs from it by {difference:.1e} (≤ {EQUAL:.0e})", equal))
    own_works = all(verdict == "works" for name in (OURS, OURS_NAMED) for verdict in works[name].values())
    outcome.append(Check("works on a frozen network, in no_grad and in inference_mode", own_works))
    return outcome


def print_table(name: str, rows: list[Row]) -> None:
    """One line per method and library."""
    print(f"\n{name}")
    print(f"{'method':12}{'library':28}{'images/s':>10}{'/ forward':>11}{'MB kept':>10}{'difference':>12}")
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        figures = f"{row.images_per_second:10.1f}{row.of_forward:11.3f}{row.kept / 1e6:10.1f}{difference:>12}"
        print(f"{row.method:12}{row.library:28}{figures}", flush=True)


def print_works(works: dict[str, dict[str, str]]) -> None:
    """One line per library and circumstance."""
    print("\nGrad-CAM where gradients are off")
    for library, verdicts in works.items():
        for name, verdict in verdicts.items():
            print(f"{library:28}{name:16}{verdict}")


def is_installed(package: str) -> bool:
    """Whether a peer can be imported."""
    from importlib.util import find_spec

    return find_spec(package) is not None


if __name__ == "__main__":
    sys.exit(main())
