"""k-reciprocal re-ranking (Zhong et al., CVPR 2017) on sparse matrices; nothing N x N is dense.

Shapes: Q queries, G gallery images, N = Q + G images, K = k1 + 1 neighbors, E non-zero entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from occluded_reid.evaluation.distances import TILE, TINY, FeatureDistances, split_range
from occluded_reid.evaluation.duplicates import list_redundant
from occluded_reid.evaluation.knn import find_neighbors
from occluded_reid.modeling.similarity import NO_VISIBILITY

SparseMatrix = Any
"""A scipy.sparse.csr_array; scipy is imported where it is used."""


class RerankedDistances:
    """(Q, G) distances ``(1 - lambda) Jaccard + lambda original``; see :class:`distances.Tiles`.

    The k1 nearest neighbors of an image that have it among *their* k1 nearest are its reciprocal
    neighbors R. The k1 / 2 reciprocal neighbors of a member join R if more than two thirds of them
    are in R. An image is encoded by ``exp(-original)`` over R, scaled to a sum of 1 and averaged
    over its k2 nearest images, itself included. Jaccard is 1 - sum of minima / sum of maxima of two
    encodings.

    The paper's original distance is squared euclidean, divided by the largest of the row. Here it
    is ``(d - min) / (max - min)`` of the distances d of an image by the model's own metric. For
    ``euclidean`` and ``cosine`` (half the squared distance of unit vectors) the minimum is 0, the
    distance to the image itself, and the two agree. For ``dot`` minus the inner product is mapped
    onto [0, 1]: this keeps the order, does not depend on the norm of the query, and normalizes no
    gallery vector, since AONet's norms carry visibility. So is minus the similarity of the forms
    that compare parts; with ``query`` the distances of an image are weighted by its own visibility.
    An image is its own first neighbor, at distance 0. Ties between neighbors are broken
    arbitrarily.

    >>> distances = RerankedDistances(features, 2210, "cosine", k1=20, k2=6, weight=0.3)
    >>> ranking = rank_queries(distances, *table.labels)

    Args:
        features: (N, D), queries first.
        queries: Q.
        metric: one of :data:`similarity.METRICS`.
        k1: size of the neighborhood.
        k2: number of encodings in the average; 1 means no averaging.
        weight: lambda in [0, 1].
        images: index of each entry's image (:func:`duplicates.assign_images`); None: all differ.
        device: computes distances and neighbors; the sparse part runs on the CPU.
        visibility: (N, P), which ``shared`` and ``query`` weight the parts by.
    """

    def __init__(
        self, features: torch.Tensor, queries: int, metric: str, *, k1: int, k2: int, weight: float,
        images: torch.Tensor | None = None, device: torch.device | str = "cpu",
        visibility: torch.Tensor = NO_VISIBILITY,
    ):  # fmt: skip
        images = torch.arange(len(features)) if images is None else images
        redundant = list_redundant(images)
        self._original = FeatureDistances(features, features, metric, device, (visibility,) * 2)
        count = min(max(k1 + 1, k2), len(features) - len(redundant))
        neighbors, self._ranges = find_neighbors(self._original, count, redundant)
        nearest = neighbors.cpu().numpy()
        members = _expand_reciprocal_sets(nearest[:, : k1 + 1], round(k1 / 2) + 1)
        nearest = nearest[:, :k2]
        encodings = _mark(nearest) @ self._encode(members) / nearest.shape[1]
        self._query_encodings = encodings[images[:queries].numpy()]
        self._gallery_by_member = encodings[images[queries:].numpy()].T.tocsr()  # (N, G)
        self._weight = weight
        self.shape = queries, len(features) - queries

    @torch.no_grad()
    def __getitem__(self, tile: tuple[slice, slice], /) -> np.ndarray:
        rows, gallery = (
            slice(*part.indices(n)[:2]) for part, n in zip(tile, self.shape, strict=True)
        )
        queries, images = self.shape
        columns = slice(queries + gallery.start, queries + gallery.stop)
        low, high = self._ranges[rows, :1], self._ranges[rows, 1:]
        original = self._original.compute_tile(rows, columns)
        original.sub_(low).div_((high - low).clamp_min(TINY))
        mixed = original.mul_(self._weight).cpu().numpy()
        for part in split_range(len(mixed), max(1, TILE // (8 * images))):
            minima = self._sum_minima(slice(rows.start + part.start, rows.start + part.stop))
            minima = minima[:, gallery]
            mixed[part] += (1 - self._weight) * (1 - minima / (2 - minima))
        return mixed

    def _encode(self, members: SparseMatrix) -> SparseMatrix:
        """Return each image's encoding over its ``members``, (N, N) with rows that sum to 1."""
        rows = np.repeat(np.arange(members.shape[0]), np.diff(members.indptr))
        pairs = torch.from_numpy(rows), torch.from_numpy(members.indices).long()
        low, high = self._ranges[pairs[0].to(self._ranges.device)].unbind(1)
        scaled = (self._original.compute_pairs(*pairs) - low) / (high - low).clamp_min(TINY)
        scaled[pairs[0] == pairs[1]] = 0
        members.data = np.exp(-scaled.double().cpu().numpy())
        members.data /= members.sum(axis=1)[rows]
        return members

    def _sum_minima(self, queries: slice) -> np.ndarray:
        """Return the sums (q, G) of the minima of the queries' and the gallery's encodings.

        Encodings sum to 1, so the sums of the maxima are 2 minus this. Only shared members count.
        """
        from scipy.sparse import csr_array

        query = self._query_encodings[queries]
        shared = self._gallery_by_member[query.indices]  # (E, G): for each entry of a query
        entries = np.repeat(query.data, np.diff(shared.indptr))
        shared.data = np.minimum(shared.data, entries)
        of_query = csr_array((np.ones(query.nnz), np.arange(query.nnz), query.indptr))
        return (of_query @ shared).toarray()


def _expand_reciprocal_sets(nearest: np.ndarray, half: int) -> SparseMatrix:
    """Return the expanded reciprocal neighbors of each image as the non-zeros of (N, N).

    ``nearest`` are K neighbors of each image, itself first; ``half`` of them are a member's set.
    """
    neighbors, near = _mark(nearest), _mark(nearest[:, :half])
    reciprocal, small = neighbors.multiply(neighbors.T), near.multiply(near.T)  # symmetric
    joins = reciprocal.multiply(reciprocal @ small).tocsr()  # sizes of the intersections
    joins.data = (3 * joins.data > 2 * small.sum(axis=1)[joins.indices]).astype(np.int32)
    return (reciprocal + joins @ small).tocsr()


def _mark(columns: np.ndarray) -> SparseMatrix:
    """Return (N, N) with ones in row i at ``columns[i]``, (N, K)."""
    from scipy.sparse import csr_array

    count, width = columns.shape
    starts = np.arange(count + 1) * width
    ones = np.ones(columns.size, np.int32)
    return csr_array((ones, columns.ravel(), starts), shape=(count, count))
