"""Measures of maps and features, by their definitions, with loops and N×N matrices, in float64."""

import numpy as np


def distances_reference(points):
    points = np.asarray(points, dtype=np.float64)
    return np.array([[np.sqrt(((a - b) ** 2).sum()) for b in points] for a in points])


def knn_correct_reference(points, labels, k):
    distances = distances_reference(points)
    correct = []
    for i, row in enumerate(distances):
        order = sorted((j for j in range(len(row)) if j != i), key=lambda j, row=row: (row[j], j))[:k]
        votes = [labels[j] for j in order]
        most = max(votes.count(v) for v in votes)
        correct.append(next(v for v in votes if votes.count(v) == most) == labels[i])
    return np.array(correct)


def trustworthiness_reference(features, positions, k):
    truth, shown = distances_reference(features), distances_reference(positions)
    n = len(truth)
    values = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        neighbours = sorted(others, key=lambda j: (shown[i, j], j))[:k]
        penalty = 0
        for j in neighbours:
            rank = 1 + sum(truth[i, m] < truth[i, j] for m in others)
            penalty += max(0, rank - k)
        values.append(1 - 2 * penalty / (k * (2 * n - 3 * k - 1)))
    return np.array(values)


def unbiased_hsic_reference(x, y):
    """Song et al. 2012, eq. 5."""
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n, ones = len(k), np.ones(len(k))
    pairs = ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + pairs - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def biased_hsic_reference(x, y):
    n = len(x)
    centring = np.eye(n) - 1 / n
    return np.trace(x @ x.T @ centring @ y @ y.T @ centring) / (n - 1) ** 2


def cka_reference(x, y, unbiased=True):
    hsic = unbiased_hsic_reference if unbiased else biased_hsic_reference
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def kl_divergence_reference(affinities, positions):
    """Of a map's similarities from given affinities (dense, N×N), by the definition of t-SNE."""
    weights = 1 / (1 + distances_reference(positions) ** 2)
    np.fill_diagonal(weights, 0)
    similarities = weights / weights.sum()
    kept = affinities > 0
    return float((affinities[kept] * np.log(affinities[kept] / similarities[kept])).sum())
