"""How a t-SNE map is optimized: gathered with exaggeration, then refined."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from openTSNE import TSNEEmbedding

from compresslens.embeddings.distances import Floats

EVERY = 20  # iterations between two looks at the clock
_DOUBLINGS = 10
_AS_GOOD = 1.25  # a size may cost so much divergence, relative to the best, if it is that of the other map
_FEW, _MANY = 1_000, 20_000

Progress = Callable[[int, int], object]


class Schedule(NamedTuple):
    """Iterations with the affinities exaggerated by a factor, and as they are."""

    gather: int
    exaggeration: int
    refine: int

    @property
    def iterations(self) -> int:
        """Both."""
        return self.gather + self.refine


FIT = Schedule(250, 12, 250)
# Gathered from a map instead of from principal components. Gathering is not to be left out: without it a network whose
# features say nothing keeps the clusters of the map that it started from. At the usual twelve, samples cross the whole
# map, and those of a similar network come to lie elsewhere.
ALIGNED_FIT = Schedule(50, 4, 45)


class Optimization:
    """Optimizes a map in place, as far as the time allows.

    Attributes:
        planned: number of iterations.
        done: as many were done.
    """

    def __init__(self, schedule: Schedule, seconds: float | None, progress: Progress | None) -> None:
        self.schedule = schedule
        self.planned = schedule.iterations
        self.done = 0
        self._stopped = False
        self._end = None if seconds is None else time.monotonic() + seconds
        self._progress = progress

    def run(self, start: Floats, affinities: Any, size: float | None = None) -> Floats:
        """The optimized map.

        Args:
            start: N×2, small.
            affinities: openTSNE's.
            size: RMS radius of the map to compare with. Then the gathered map is multiplied to that size, or to where
                the divergence is least if that is clearly less, and only refined; otherwise it grows by itself.
        """
        samples = len(start)
        embedding = TSNEEmbedding(start, affinities, n_jobs=1)
        gather, exaggeration, refine = self.schedule
        self._iterate(embedding, gather, exaggeration=exaggeration, momentum=0.8, **_gathering(samples))
        if size is not None and not self._stopped:
            spread = embedding * _best_factor(embedding, affinities, size)
            embedding = TSNEEmbedding(spread, affinities, n_jobs=1)
        speed = _growing(samples) if size is None else _settling(samples)
        self._iterate(embedding, refine, **speed, **_refining(samples))
        return np.array(embedding)

    def _iterate(self, embedding: TSNEEmbedding, iterations: int, **settings: Any) -> None:
        before = self.done
        if self._is_over():
            return

        def look(iteration: int, _divergence: float, _positions: Floats) -> bool:
            self.done = before + iteration - 1  # the iteration is about to end when openTSNE calls
            self._tell()
            return self._is_over()

        embedding.optimize(iterations, inplace=True, callbacks=look, callbacks_every_iters=EVERY, **settings)
        if not self._stopped:
            self.done = before + iterations
            self._tell()

    def _is_over(self) -> bool:
        self._stopped = self._stopped or (self._end is not None and time.monotonic() >= self._end)
        return self._stopped

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self.done, self.planned)


def radius(positions: Floats) -> float:
    """Root of the mean squared distance from the centre of a map."""
    plain = np.asarray(positions)
    return float(np.sqrt(((plain - plain.mean(0)) ** 2).sum(1).mean()))


def _gathering(samples: int) -> dict[str, Any]:
    """openTSNE's settings for the repulsion while affinities are exaggerated.

    The map is small then, and so are the grids of the interpolation (Linderman et al. 2019): for many samples it takes
    a third of the time of Barnes-Hut trees, or less.
    """
    if samples < _FEW:
        return {"negative_gradient_method": "bh", "theta": 0.8}
    return {"negative_gradient_method": "fft", "min_num_intervals": 25}


def _growing(samples: int) -> dict[str, Any]:
    """The usual 500 iterations (scikit-learn: 750) of momentum 0.8 are mostly spent on letting the map grow.

    With eight times the step in the long run 250 reach the same divergence. Small maps need no such haste: they would
    fly apart.
    """
    return _settling(samples) if samples < _FEW else {"momentum": 0.95, "learning_rate": 2 * samples}


def _settling(samples: int) -> dict[str, Any]:
    """In a map of full size, and few iterations, faster ones would still be swinging at the end."""
    return {"momentum": 0.8, "learning_rate": samples}


def _refining(samples: int) -> dict[str, Any]:
    """openTSNE's settings for the repulsion in the large map: trees, which are coarser for very many samples."""
    return {"negative_gradient_method": "bh", "theta": 0.5 if samples <= _MANY else 0.8}


def _best_factor(positions: TSNEEmbedding, affinities: Any, size: float) -> float:
    """By what a gathered map is to be multiplied for a size, or for the least divergence if that is clearly less."""

    def divergence(factor: float) -> float:
        scaled = TSNEEmbedding(np.asarray(positions) * factor, affinities, n_jobs=1, negative_gradient_method="bh")
        return float(scaled.optimize(0, theta=0.8).kl_divergence)

    best, least = 1.0, divergence(1.0)
    for power in range(1, _DOUBLINGS + 1):
        found = divergence(2.0**power)
        if found >= least:
            break
        best, least = 2.0**power, found
    wanted = size / radius(positions)
    return wanted if divergence(wanted) <= _AS_GOOD * least else best
