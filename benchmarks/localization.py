"""What our localization figures cost, and whether they are those of Quantus.

    python benchmarks/localization.py                 # a batch of 32 maps of 224x224; about a minute
    python benchmarks/localization.py --json runs/localization.json

Pointing game and energy in mask, on one thread. Three kinds of maps: noise per pixel; noise of 7x7 cells, upsampled as
class activation maps are; the same with all below a bound cut to zero, as Grad-CAM has it. Where noise of cells has
its maximum at the border, upsampling repeats it over many pixels. Ours and Quantus' (which get the whole batch, with
attributions and masks given, and normalization off) run in turns in one process.

Quantus gives a hit to an empty mask, since its NaN is stored in an array of booleans; to a map of zeros its pointing
game gives a hit, its relevance mass NaN. Ours are NaN, and chance. No such sample is among those compared.

Quantus is in no extra of ours, because of its size: pip install quantus
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compresslens.cams.baselines import random_maps
from compresslens.cams.localization import energy_in_mask, pointing_game
from compresslens.export.latency import processor

LIMIT_MS = 10.0
AGREEMENT = 1e-6
SIDE = 224


def main() -> int:
    """Prints the table and the checks; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32, help="maps in the batch")
    parser.add_argument("--rounds", type=int, default=20, help="of measurement")
    parser.add_argument("--peer-rounds", type=int, default=5, help="of those with Quantus in turn")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    theirs = quantus_measures()
    print(f"{processor()}, 1 thread; torch {version('torch')}, quantus {version('quantus')}")
    print(f"{arguments.samples} maps of {SIDE}x{SIDE}; CPU ms per batch, median (least to greatest)\n")
    print(f"{'maps':12}{'measure':16}{'ours':>24}{'Quantus':>28}{'ratio':>8}{'difference':>12}{'mean':>8}")
    figures: list[dict[str, Any]] = []
    for kind, (maps, masks) in examples(arguments.samples).items():
        for name, ours in (("pointing game", pointing_game), ("energy in mask", energy_in_mask)):
            found = compare(ours, theirs[name], maps, masks, arguments.rounds, arguments.peer_rounds)
            figures.append({"maps": kind, "measure": name, **found})
            ms, peer_ms = found["ms"], found["quantus_ms"]
            ratio = statistics.median(peer_ms) / statistics.median(ms)
            print(
                f"{kind:12}{name:16}{spread(ms):>24}{spread(peer_ms):>28}{ratio:8.0f}"
                f"{found['difference']:12.1e}{found['mean']:8.3f}",
                flush=True,
            )
    outcome = checks(figures)
    print()
    for passed, text in outcome:
        print(f"{'passed' if passed else 'FAILED':8}{text}")
    if arguments.json:
        content = {"processor": processor(), "torch": version("torch"), "quantus": version("quantus")}
        content |= {"figures": figures, "checks": [{"passed": passed, "text": text} for passed, text in outcome]}
        arguments.json.write_text(json.dumps(content, indent=1, allow_nan=False))
    return int(not all(passed for passed, _ in outcome))


def examples(count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Maps in [0, 1] and masks with at least one pixel, none of the maps all zero."""
    cells = random_maps(range(count), SIDE, SIDE)
    masks = random_maps(range(count), SIDE, SIDE, resolution=5, seed=1) > 0.75
    return {
        "pixel noise": (random_maps(range(count), SIDE, SIDE, resolution=None), masks),
        "cells": (cells, masks),
        "cut cells": ((cells - 0.6).relu() / 0.4, masks),
    }


def quantus_measures() -> dict[str, Callable[[Tensor, Tensor], list[float]]]:
    """Quantus' measures as functions of maps and masks."""
    try:
        import quantus
    except ImportError:
        sys.exit("Quantus is not installed: pip install quantus")

    def measure(metric: Any) -> Callable[[Tensor, Tensor], list[float]]:
        def call(maps: Tensor, masks: Tensor) -> list[float]:
            count = len(maps)
            images = np.zeros((count, 1, SIDE, SIDE), np.float32)
            given = {"a_batch": maps[:, None].numpy(), "s_batch": masks[:, None].numpy()}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                labels = np.zeros(count, np.int64)
                return metric(model=torch.nn.Identity(), x_batch=images, y_batch=labels, channel_first=True, **given)

        return call

    settings: dict[str, Any] = {"abs": False, "normalise": False, "disable_warnings": True}
    return {
        "pointing game": measure(quantus.PointingGame(**settings)),
        "energy in mask": measure(quantus.RelevanceMassAccuracy(**settings)),
    }


def compare(
    ours: Callable[[Tensor, Tensor], Tensor],
    theirs: Callable[[Tensor, Tensor], list[float]],
    maps: Tensor,
    masks: Tensor,
    rounds: int,
    peer_rounds: int,
) -> dict[str, Any]:
    """Times in ms, the greatest difference of a sample, and the mean score."""
    scores, expected = ours(maps, masks), torch.tensor([float(score) for score in theirs(maps, masks)]).double()
    times: list[float] = []
    peer_times: list[float] = []
    for turn in range(max(rounds, peer_rounds)):
        if turn < rounds:
            times.append(milliseconds(lambda: ours(maps, masks)))
        if turn < peer_rounds:
            peer_times.append(milliseconds(lambda: theirs(maps, masks)))
    difference = (scores - expected).abs().max().item()
    return {"ms": times, "quantus_ms": peer_times, "difference": difference, "mean": scores.mean().item()}


def milliseconds(call: Callable[[], Any]) -> float:
    """CPU time, which other processes on the machine do not lengthen as they do wall time."""
    began = time.process_time()
    call()
    return 1000 * (time.process_time() - began)


def checks(figures: list[dict[str, Any]]) -> list[tuple[bool, str]]:
    """Whether the samples agree, and the time of both figures together is within the limit."""
    difference = max(figure["difference"] for figure in figures)
    outcome = [(difference <= AGREEMENT, f"samples differ from Quantus' by {difference:.1e} at most ({AGREEMENT:.0e})")]
    for kind in dict.fromkeys(figure["maps"] for figure in figures):
        both = sum(statistics.median(figure["ms"]) for figure in figures if figure["maps"] == kind)
        outcome.append((both <= LIMIT_MS, f"{kind}: both figures take {both:.1f} ms a batch ({LIMIT_MS:.0f} ms)"))
    return outcome


def spread(times: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


if __name__ == "__main__":
    sys.exit(main())
