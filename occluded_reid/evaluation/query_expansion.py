"""Average query expansion: each feature vector becomes a weighted mean over its neighbors.

Shapes: N images (queries, then gallery), D feature dimensions, K images in a mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from occluded_reid.evaluation.distances import TILE, FeatureDistances, split_range
from occluded_reid.evaluation.duplicates import list_redundant
from occluded_reid.evaluation.knn import find_neighbors


@torch.no_grad()
def expand_features(
    features: torch.Tensor, metric: str, *, times: int, count: int, alpha: float,
    images: torch.Tensor | None = None, device: torch.device | str = "cpu",
) -> torch.Tensor:  # fmt: skip
    """Return (N, D) expanded features; ``features`` stays unchanged.

    ``f_i <- sum_j s_ij^alpha f_j / sum_j s_ij^alpha`` over the image itself and its K - 1 nearest
    neighbors by the model's own metric. s is the inner product for ``dot``, else the cosine;
    negative values count as 0. The features themselves are not normalized, so norms keep their
    meaning, which is visibility in AONet's features. fast-reid omits the division, which does not
    change the cosines of the first round.

    After Chum et al., "Total Recall" (ICCV 2007); the weights are those of Radenovic et al.,
    "Fine-tuning CNN Image Retrieval with No Human Annotation" (TPAMI 2019).

    >>> expanded = expand_features(features, "cosine", times=1, count=5, alpha=3.0)

    Args:
        features: (N, D).
        metric: ``cosine``, ``euclidean`` or ``dot``.
        times: number of rounds.
        count: K, including the image itself.
        alpha: exponent; 0 gives the plain mean.
        images: index of each entry's image (:func:`duplicates.assign_images`); None: all differ.
        device: computes the products.
    """
    images = torch.arange(len(features)) if images is None else images
    redundant = list_redundant(images)
    count = min(count, len(features) - len(redundant))
    for _ in range(times):
        distances = FeatureDistances(features, features, metric, device)
        neighbors, _ = find_neighbors(distances, count, redundant)
        features = _average_neighbors(features, neighbors, alpha, dot=metric == "dot")[images]
    return features


def _average_neighbors(
    features: torch.Tensor, neighbors: torch.Tensor, alpha: float, dot: bool
) -> torch.Tensor:
    expanded = torch.empty_like(features)
    count, device = neighbors.shape[1], neighbors.device
    for rows in split_range(len(features), max(1, TILE // (4 * count * features.shape[1]))):
        own = features[rows].to(device)  # (rows, D)
        others = features[neighbors[rows].to(features.device)].to(device)  # (rows, K, D)
        if dot:
            similarity = (others @ own[:, :, None]).squeeze(2)
        else:
            similarity = F.cosine_similarity(others, own[:, None], dim=2)
        weights = similarity.clamp_min(0) ** alpha  # (rows, K)
        total = weights.sum(1, keepdim=True)
        mean = (weights[:, None] @ others).squeeze(1) / total
        expanded[rows] = torch.where(total > 0, mean, own).to(features.device)
    return expanded
