"""Average query expansion: each image's vector becomes a mean over its nearest images.

Shapes: N images (queries, then gallery), D feature dimensions, K images in a mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from occluded_reid.evaluation.distances import TILE, FeatureDistances, spans
from occluded_reid.evaluation.duplicates import hidden_copies
from occluded_reid.evaluation.knn import find_neighbors


@torch.no_grad()
def expand(
    features: torch.Tensor,
    metric: str,
    *,
    times: int,
    count: int,
    alpha: float,
    images: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return (N, D) expanded features; ``features`` stays as it is.

    ``f_i <- sum_j s_ij^alpha f_j / sum_j s_ij^alpha`` over the image itself and the K - 1 nearest
    others by the model's own metric. s is the inner product where the metric is ``dot``, the cosine
    otherwise; a negative one counts as 0. Nothing is normalised: the *weights* sum to 1, so lengths
    keep their meaning, which is visibility in AONet's vectors. fast-reid leaves out the division,
    which makes no difference to the cosines after the first round.

    After Chum et al., "Total Recall" (ICCV 2007), and Radenovic et al., "Fine-tuning CNN Image
    Retrieval with No Human Annotation" (TPAMI 2019), for the weights.

    Args:
        features: (N, D).
        metric: ``cosine``, ``euclidean`` or ``dot``.
        times: how often it is repeated.
        count: K, the image itself counted.
        alpha: 0 is the plain mean.
        images: which image each of N is (:func:`copies.image_of_each`); None: all differ.
        device: where the products are computed.
    """
    images = torch.arange(len(features)) if images is None else images
    hidden = hidden_copies(images)
    count = min(count, len(features) - len(hidden))
    for _ in range(times):
        distances = FeatureDistances(features, features, metric, device)
        nearest, _ = find_neighbors(distances, count, hidden)
        features = _means(features, nearest, alpha, dot=metric == "dot")[images]
    return features


def _means(features: torch.Tensor, nearest: torch.Tensor, alpha: float, dot: bool) -> torch.Tensor:
    expanded = torch.empty_like(features)
    _, count = nearest.shape
    for rows in spans(len(features), max(1, TILE // (4 * count * features.shape[1]))):
        own = features[rows].to(nearest.device)  # (rows, D)
        others = features[nearest[rows].to(features.device)].to(nearest.device)  # (rows, K, D)
        if dot:
            similarity = (others @ own[:, :, None]).squeeze(2)
        else:
            similarity = F.cosine_similarity(others, own[:, None], dim=2)
        weights = similarity.clamp_min(0) ** alpha  # (rows, K)
        total = weights.sum(1, keepdim=True)
        mean = (weights[:, None] @ others).squeeze(1) / total
        expanded[rows] = torch.where(total > 0, mean, own).to(features.device)
    return expanded
