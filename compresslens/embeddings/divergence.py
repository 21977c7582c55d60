"""What t-SNE minimizes, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np

from compresslens.embeddings.distances import Floats, distance_blocks


def kl_divergence(affinities: Any, positions: Floats) -> float:
    """Kullback-Leibler divergence of a map's similarities from the features' affinities, in nats.

    Van der Maaten & Hinton 2008, eq. 5. Optimizers only estimate it (openTSNE's is some percent off).

    Args:
        affinities: N×N, sparse, not negative, nothing on the diagonal; they are divided by their sum.
        positions: N×2.
    """
    pairs = affinities.tocoo()
    kept = pairs.data > 0
    rows, columns, weights = pairs.row[kept], pairs.col[kept], pairs.data[kept] / pairs.data[kept].sum()
    closeness = 1 / (1 + ((positions[rows] - positions[columns]) ** 2).sum(1))
    total = sum(float((1 / (1 + block)).sum()) for _, block in distance_blocks(positions))
    return float((weights * np.log(weights * total / closeness)).sum())
