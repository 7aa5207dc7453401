"""``evaluation``: from features to the ranks of all positives, against the product alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from harness.comparison import Figure, make_figure, require_equal, time_alternately

from figures.rerank import make_features
from occluded_reid.evaluation.distances import FeatureDistances
from occluded_reid.evaluation.ranking import rank_queries

NAMES = ("evaluation",)


def measure(
    queries: int = 2210, gallery: int = 17661, channels: int = 3072, rounds: int = 3
) -> dict[str, Figure]:
    """Compare with the matrix product of normalized features, which ranks nothing."""
    features = make_features(queries + gallery, channels)
    query, images = features[:queries], features[queries:]
    labels = make_labels(queries, gallery)

    def ours() -> Any:
        return rank_queries(FeatureDistances(query, images, "cosine"), *labels)

    normalized = [F.normalize(each, dim=1) for each in (query, images)]
    from_product = rank_queries((1 - normalized[0] @ normalized[1].T).numpy(), *labels)
    precision = ours().average_precision.mean()
    require_equal("mAP", precision, from_product.average_precision.mean(), atol=1e-3)
    unit = f"s, {queries} x {gallery} of {channels}, against the product alone"
    times = time_alternately(ours, lambda: normalized[0] @ normalized[1].T, rounds=rounds)
    return {"evaluation": make_figure(times, unit)}


def make_labels(queries: int, gallery: int) -> list[np.ndarray]:
    """Return identities, about 16 images each, then cameras, of queries and gallery."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, high, size)
        for high in (max(2, gallery // 16), 8)
        for size in (queries, gallery)
    ]
