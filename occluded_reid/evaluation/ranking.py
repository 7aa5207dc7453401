"""Distances between queries and gallery, and where the right answers stand in the ranking.

Shapes: Q queries, G gallery images, D feature dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


class Ranking(NamedTuple):
    """How each query fared; queries without a positive in the gallery are left out.

    Attributes:
        query: (V,) positions of the V valid queries among all Q.
        positives: (V,) number of gallery images of the query's identity from other cameras.
        first_match: (V,) rank of the first of them, from 1.
        average_precision: (V,) in (0, 1].
        inverse_negative_penalty: (V,) positives / rank of the last of them, in (0, 1].
    """

    query: np.ndarray
    positives: np.ndarray
    first_match: np.ndarray
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray

    def rank_k(self, k: int) -> np.ndarray:
        """(V,) float: 1 where a right answer stands among the first ``k``."""
        return (self.first_match <= k).astype(np.float64)


@torch.no_grad()
def distance_matrix(query: torch.Tensor, gallery: torch.Tensor, metric: str) -> np.ndarray:
    """Return (Q, G) float32 distances; smaller is more alike.

    Args:
        query: (Q, D).
        gallery: (G, D).
        metric: ``cosine`` (1 - cosine), ``euclidean`` (squared) or ``dot`` (minus inner product).

    Raises:
        ValueError: an unknown metric.
    """
    if metric == "cosine":
        distances = 1 - F.normalize(query) @ F.normalize(gallery).T
    elif metric == "euclidean":
        squares = query.square().sum(1, keepdim=True) + gallery.square().sum(1)
        distances = squares - 2 * query @ gallery.T
    elif metric == "dot":
        distances = -(query @ gallery.T)
    else:
        raise ValueError(f"unknown metric {metric!r}: cosine, euclidean or dot")
    return distances.float().cpu().numpy()


def rank_queries(
    distances: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> Ranking:
    """Rank the gallery for each query under Market-1501's rule.

    Gallery images of the query's identity *and* camera are ignored. Equal distances keep the
    gallery's order. Nothing is sorted: the rank of a positive is the number of gallery images
    before it.

    Args:
        distances: (Q, G).
        query_ids: (Q,) identities; likewise the other three.

    Returns:
        One entry per query that has a positive.
    """
    rows = []
    for query, row in enumerate(distances):
        same_identity = gallery_ids == query_ids[query]
        same_camera = gallery_cameras == query_cameras[query]
        positives = np.flatnonzero(same_identity & ~same_camera)
        if len(positives) == 0:
            continue
        kept = row.copy()
        kept[same_identity & same_camera] = np.inf
        ranks = _ranks(kept, positives)
        hits = np.arange(1, len(ranks) + 1)
        rows.append((query, len(ranks), ranks[0], np.mean(hits / ranks), len(ranks) / ranks[-1]))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    kinds = (np.int64, np.int64, np.int64, np.float64, np.float64)
    return Ranking(*(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)))


def _ranks(row: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return the ranks (from 1, ascending) of ``positives`` in ``row``; ties in gallery order."""
    values = row[positives][:, None]
    before = np.count_nonzero(row[None] < values, axis=1)
    for place, (position, value) in enumerate(zip(positives, values[:, 0], strict=True)):
        before[place] += np.count_nonzero(row[:position] == value)
    return np.sort(before) + 1
