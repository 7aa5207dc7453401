"""``rerank``: k-reciprocal re-ranking with the paper's parameters, distances included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from fastreid.evaluation.rerank import re_ranking
from harness.comparison import Figure, make_figure, require_equal, time_alternately

from occluded_reid.evaluation.distances import distance_matrix
from occluded_reid.evaluation.reranking import RerankedDistances

NAMES = ("rerank",)


def measure(
    queries: int = 200, gallery: int = 1600, channels: int = 256, k1: int = 20, k2: int = 6,
    rounds: int = 3,
) -> dict[str, Figure]:  # fmt: skip
    """Compare with fast-reid's loop, which needs dense N x N matrices."""
    ours, reference = build_pair(queries, gallery, channels, k1, k2)
    require_equal("re-ranked distances", ours(), reference(), atol=1e-4)
    unit = f"s, {queries} x {gallery} of {channels}, k1 {k1}, k2 {k2}"
    return {"rerank": make_figure(time_alternately(ours, reference, rounds=rounds), unit)}


def build_pair(
    queries: int, gallery: int, channels: int, k1: int, k2: int
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """Return ours and fast-reid's functions from the same features to (Q, G) distances."""
    features = make_features(queries + gallery, channels)

    def ours() -> np.ndarray:
        return RerankedDistances(features, queries, "euclidean", k1=k1, k2=k2, weight=0.3)[:, :]

    def reference() -> np.ndarray:
        distances = distance_matrix(features, features, "euclidean")
        np.sqrt(np.maximum(distances, 0, out=distances), out=distances)
        parts = distances[:queries, queries:], distances[:queries, :queries]
        return re_ranking(*parts, distances[queries:, queries:], k1, k2, lambda_value=0.3)

    return ours, reference


def make_features(images: int, channels: int) -> torch.Tensor:
    """Return random features (images, channels) in clusters of about twelve."""
    rng = torch.Generator().manual_seed(0)
    centers = torch.randn(max(1, images // 12), channels, generator=rng)
    labels = torch.randint(len(centers), (images,), generator=rng)
    return centers[labels] + 0.7 * torch.randn(images, channels, generator=rng)
