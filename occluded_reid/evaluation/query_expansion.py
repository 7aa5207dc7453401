"""Average query expansion: each feature vector becomes a weighted mean over its neighbors.

Shapes: N images (queries, then gallery), D feature dimensions, P parts, K images in a mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from occluded_reid.evaluation.distances import TILE, FeatureDistances, split_range
from occluded_reid.evaluation.duplicates import list_redundant
from occluded_reid.evaluation.knn import find_neighbors
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.modeling.similarity import NO_VISIBILITY, PART_METRICS, make_rows, weight_parts


@torch.no_grad()
def expand_features(
    features: torch.Tensor, metric: str, *, times: int, count: int, alpha: float,
    images: torch.Tensor | None = None, device: torch.device | str = "cpu",
    visibility: torch.Tensor = NO_VISIBILITY,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return (N, D) expanded features, and the visibility of their parts; the given ones stay.

    ``f_i <- sum_j s_ij^alpha f_j / sum_j s_ij^alpha`` over the image itself and its K - 1 nearest
    neighbors by the model's own metric. s is the cosine for ``cosine`` and ``euclidean``, else the
    similarity itself; negative values count as 0. The features themselves are not normalized, so
    norms keep their meaning, which is visibility in the rows of Eq. 8. fast-reid omits the
    division, which does not change the cosines of the first round.

    For ``shared`` and ``query``, f_j are the parts times their visibility, whose mean is scaled to
    the norm of rows again; visibility is averaged with the same weights.

    After Chum et al., "Total Recall" (ICCV 2007); the weights are those of Radenovic et al.,
    "Fine-tuning CNN Image Retrieval with No Human Annotation" (TPAMI 2019).

    >>> expanded, _ = expand_features(features, "cosine", times=1, count=5, alpha=3.0)

    Args:
        features: rows (N, D).
        metric: one of :data:`similarity.METRICS`.
        times: number of rounds.
        count: K, including the image itself.
        alpha: exponent; 0 gives the plain mean.
        images: index of each entry's image (:func:`duplicates.assign_images`); None: all differ.
        device: computes the products.
        visibility: (N, P), which ``shared`` and ``query`` weight the parts by.
    """
    images = torch.arange(len(features)) if images is None else images
    redundant = list_redundant(images)
    count = min(count, len(features) - len(redundant))
    for _ in range(times):
        distances = FeatureDistances(features, features, metric, device, (visibility, visibility))
        neighbors, _ = find_neighbors(distances, count, redundant)
        if metric not in PART_METRICS:
            features = _average_neighbors(features, distances, neighbors, alpha)[images]
            continue
        weighted = torch.cat([weight_parts(features, visibility), visibility], dim=1)
        mean = _average_neighbors(weighted, distances, neighbors, alpha)[images]
        parts, visibility = mean.split([features.shape[1], visibility.shape[1]], dim=1)
        parts = parts.unflatten(1, (visibility.shape[1], -1))
        features = make_rows(Embedding(parts, visibility), metric)
    return features, visibility


def _average_neighbors(
    features: torch.Tensor, distances: FeatureDistances, neighbors: torch.Tensor, alpha: float
) -> torch.Tensor:
    expanded = torch.empty_like(features)
    count, device = neighbors.shape[1], neighbors.device
    for rows in split_range(len(features), max(1, TILE // (4 * count * features.shape[1]))):
        own = features[rows].to(device)  # (rows, D)
        nearest = neighbors[rows].to(features.device)
        others = features[nearest].to(device)  # (rows, K, D)
        if distances.metric == "dot":
            similarity = (others @ own[:, :, None]).squeeze(2)
        elif distances.metric in PART_METRICS:
            queries = torch.arange(rows.start, rows.stop).repeat_interleave(count)
            similarity = -distances.compute_pairs(queries, nearest.flatten()).view_as(nearest)
        else:
            similarity = F.cosine_similarity(others, own[:, None], dim=2)
        weights = similarity.clamp_min(0) ** alpha  # (rows, K)
        total = weights.sum(1, keepdim=True)
        mean = (weights[:, None] @ others).squeeze(1) / total
        expanded[rows] = torch.where(total > 0, mean, own).to(features.device)
    return expanded
