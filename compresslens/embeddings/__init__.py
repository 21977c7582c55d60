"""Features of networks: t-SNE maps that can be compared, how good they are, and how alike two networks see."""

from compresslens.embeddings.cka import cka_interval, cka_without_each, linear_cka
from compresslens.embeddings.drift import centroid_drift, displacements, geometry_drift
from compresslens.embeddings.quality import (
    EmbeddingQuality,
    continuity,
    embedding_quality,
    knn_correct,
    silhouettes,
    trustworthiness,
)
from compresslens.embeddings.tsne import Embedding, tsne

__all__ = [
    "Embedding",
    "EmbeddingQuality",
    "centroid_drift",
    "cka_interval",
    "cka_without_each",
    "continuity",
    "displacements",
    "embedding_quality",
    "geometry_drift",
    "knn_correct",
    "linear_cka",
    "silhouettes",
    "trustworthiness",
    "tsne",
]
