"""How long calls take, measured in turns so that what else happens on the machine hits all of them alike."""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEAST_ROUNDS, MOST_ROUNDS = 5, 200
QUICK = 0.03
"""Seconds: calls that take less suffer noticeably from the caches that the call before has filled."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call.

    Attributes:
        median: of all timed calls.
        quartiles: first and third.
        rounds: median of each round, in the order in which they were run; those of the same number belong together.
    """

    median: float
    quartiles: tuple[float, float]
    rounds: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "median_ms": self.median,
            "quartiles_ms": list(self.quartiles),
            "rounds": len(self.rounds),
        }


def interleaved(
    calls: Mapping[str, Callable[[], Any]], seconds: float = 2.0, rounds: int | None = None
) -> dict[str, Latency]:
    """Times several functions in turns, in an order that is drawn anew for each round.

    The order matters: what ran before leaves its traces in caches and in the processor's clock. A turn of a quick
    function is one call that only warms up and three that are timed, of a slow one a single call.

    Args:
        calls: functions without arguments, by name.
        seconds: about how long all of it may take; five rounds are run in any case.
        rounds: number of rounds; None: as many as there is time for.

    Returns:
        By name.
    """
    turns, cost = {}, 0.0
    for name, call in calls.items():
        call()
        once = _milliseconds(call) / 1000
        turns[name] = (1, 3) if once < QUICK else (0, 1)
        cost += once * sum(turns[name])
    if rounds is None:
        rounds = min(max(int(seconds / cost), LEAST_ROUNDS), MOST_ROUNDS)
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    order, generator = list(calls), random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            call, (untimed, timed) = calls[name], turns[name]
            for _ in range(untimed):
                call()
            times[name].append([_milliseconds(call) for _ in range(timed)])
    return {name: summary(of_rounds) for name, of_rounds in times.items()}


def summary(rounds: list[list[float]]) -> Latency:
    """Median and quartiles of the milliseconds of all calls, round by round."""
    everything = [value for values in rounds for value in values]
    low, median, high = statistics.quantiles(everything, n=4, method="inclusive")
    return Latency(median, (low, high), tuple(statistics.median(values) for values in rounds))


def speedup(reference: Latency, model: Latency) -> tuple[float, tuple[float, float]]:
    """How many times faster the model is: median, over the rounds, of the ratio of the times; and its quartiles."""
    ratios = [slow / fast for slow, fast in zip(reference.rounds, model.rounds, strict=True)]
    if len(ratios) == 1:
        return ratios[0], (ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return median, (low, high)


def processor() -> str:
    """What the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _milliseconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000
