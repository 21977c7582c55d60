"""Latency of an artefact beside its reference's, in the same runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compresslens.export import runtimes
from compresslens.export.latency import Latency, interleaved, speedup


@dataclass(frozen=True)
class Comparison:
    """What was timed in one runtime with one batch size.

    Attributes:
        model: the artefact's.
        reference: that of the network it is held against, or None.
    """

    model: Latency
    reference: Latency | None

    @property
    def speedup(self) -> float | None:
        """How many times faster than the reference."""
        return None if self.reference is None else speedup(self.reference, self.model)[0]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = {"model": self.model.as_json(), "reference": None, "speedup": None}
        if self.reference is not None:
            ratio, quartiles = speedup(self.reference, self.model)
            values |= {"reference": self.reference.as_json(), "speedup": ratio, "speedup_quartiles": list(quartiles)}
        return values


def compare_latency(
    runtime: str,
    model: Mapping[str, Path],
    reference: Mapping[str, Path] | None,
    image_size: int,
    batch: int = 1,
    threads: int = 1,
    seconds: float = 2.0,
) -> Comparison:
    """Times an artefact and its reference in turns.

    Args:
        runtime: see `runtimes.RUNTIMES`.
        model: artefacts by format; the runtime reads the one it understands.
        reference: likewise, or None.
        image_size: side of the images.
        batch: images of a call.
        threads: that a call may use.
        seconds: about how long the timing may take, preparations apart.

    Raises:
        UserError: see `runtimes.load`.
    """
    images = torch.rand(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    artefacts = {"model": model} if reference is None else {"model": model, "reference": reference}
    calls = {
        name: partial(runtimes.load(runtime, files[runtimes.FILES[runtime]], batch, image_size, threads), images)
        for name, files in artefacts.items()
    }
    times = interleaved(calls, seconds)
    return Comparison(times["model"], times.get("reference"))
