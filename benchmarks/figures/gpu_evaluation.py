"""``gpu_evaluation``: from features on the GPU to the ranks of all positives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from fastreid.evaluation.rank import evaluate_rank
from harness.comparison import Figure, make_figure, require_equal, time_alternately

from figures.evaluation import make_labels
from figures.ranking import KIND, QUERIES
from figures.rerank import make_features
from occluded_reid.evaluation.distances import FeatureDistances
from occluded_reid.evaluation.ranking import rank_queries

NAMES = ("gpu_evaluation",)


def measure(
    queries: int = QUERIES, gallery: int = 17661, channels: int = 3072, device: str = "cuda",
    rounds: int = 2,
) -> dict[str, Figure]:  # fmt: skip
    """Compare with all cosine distances at once, moved to the host for fast-reid's ranking."""
    features = make_features(queries + gallery, channels).to(device)
    query, images = features[:queries], features[queries:]
    labels = make_labels(queries, gallery)

    def ours() -> Any:
        return rank_queries(FeatureDistances(query, images, "cosine", device), *labels)

    def reference() -> Any:
        distances = 1 - F.normalize(query, dim=1) @ F.normalize(images, dim=1).T
        return evaluate_rank(distances.cpu().numpy(), *labels, max_rank=min(50, gallery))

    precision = ours().average_precision.mean()
    require_equal("mAP", precision, np.mean(reference()[1]), atol=1e-3)
    unit = f"s, {queries} x {gallery} of {channels}, against fast-reid's {KIND}"
    times = time_alternately(ours, reference, rounds=rounds, device=device)
    return {"gpu_evaluation": make_figure(times, unit)}
