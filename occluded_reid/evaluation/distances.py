"""Distances by the model's own metric, one tile at a time.

Shapes: Q queries, G gallery images, D dimensions of a row, P parts, n pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from occluded_reid.modeling.similarity import METRICS, NO_VISIBILITY, PART_METRICS, weight_parts

TILE = 2**23  # distances in memory at a time: 32 MiB of float32
MIN_TILE_ROWS = 64  # with fewer, the gallery would be read too often
TINY = 1e-12
SAFE = 1e-6, 1e15  # norms and values whose products are neither 0 nor infinite in float32


class Tiles(Protocol):
    """A (Q, G) matrix that is read by two slices: an array, or values computed on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(Q, G)."""

    def __getitem__(self, tile: tuple[slice, slice], /) -> np.ndarray:
        """Return the distances of some queries to some gallery images."""


class FeatureDistances:
    """(Q, G) distances between images, smaller is more similar; only one tile is in memory.

    >>> distances = FeatureDistances(query, gallery, "cosine")
    >>> distances[0:64, :].shape
    (64, 17661)

    Args:
        query: (Q, D) float32, of :func:`similarity.make_rows`; in bfloat16, products are rounded to
            8 bits (0.4 %), which is much faster on processors with matrix units.
        gallery: (G, D), likewise.
        metric: ``cosine`` (1 - cosine), ``euclidean`` (squared), ``dot`` (minus inner product), or
            ``shared`` or ``query`` (minus the similarity of that name).
        device: computes the products; the features may stay elsewhere.
        visibility: (Q, P) and (G, P), which ``shared`` and ``query`` weight the parts by.
    """

    def __init__(
        self, query: torch.Tensor, gallery: torch.Tensor, metric: str,
        device: torch.device | str = "cpu",
        visibility: tuple[torch.Tensor, torch.Tensor] = (NO_VISIBILITY, NO_VISIBILITY),
    ):  # fmt: skip
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; expected one of {', '.join(METRICS)}")
        self.shape = len(query), len(gallery)
        self.device = torch.device(device)
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.metric = metric
        self.query, self._query_norms = self._measure(query)
        self.gallery, self._gallery_norms = self._measure(gallery)
        self._visibility = visibility
        self._loaded: tuple[slice, torch.Tensor] | None = None

    def __getitem__(self, tile: tuple[slice, slice], /) -> np.ndarray:
        return self.compute_tile(*tile).float().cpu().numpy()

    @torch.no_grad()
    def compute_tile(self, queries: slice, gallery: slice) -> torch.Tensor:
        """Return the distances of ``queries`` to ``gallery`` on the device."""
        products = self._take_queries(queries).to(self.device) @ self._load_gallery(gallery).T
        if self.metric == "shared":
            query, others = (
                each[rows].to(self.device)
                for each, rows in zip(self._visibility, (queries, gallery), strict=True)
            )
            products = self._divide_by_weights(products, query @ others.T)
        norms = self._query_norms[queries, None], self._gallery_norms[gallery]
        return self._to_distances(products, *norms)

    @torch.no_grad()
    def compute_pairs(self, queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        """Return the distances (n,) of pairs of a query (n,) and a gallery image (n,)."""
        size = max(1, TILE // (32 * self.query.shape[1]))  # fits the processor's cache
        products = torch.cat(
            [
                self._take_queries(queries[part]).mul_(self._take_gallery(gallery[part])).sum(1)
                for part in split_range(len(queries), size)
            ]
        )
        if self.metric == "shared":
            query, others = self._visibility
            products = self._divide_by_weights(products, (query[queries] * others[gallery]).sum(1))
        queries, gallery = queries.to(self.device), gallery.to(self.device)
        norms = self._query_norms[queries], self._gallery_norms[gallery]
        return self._to_distances(products.to(self.device), *norms)

    def _take_queries(self, queries: slice | torch.Tensor) -> torch.Tensor:
        """Return the rows of some queries, with their parts weighted; a copy unless by a slice."""
        rows = _take(self.query, queries)
        if self.metric not in PART_METRICS:
            return rows
        return weight_parts(rows, self._visibility[0][queries])

    def _take_gallery(self, gallery: slice | torch.Tensor) -> torch.Tensor:
        rows = _take(self.gallery, gallery)
        if self.metric != "shared":
            return rows
        return weight_parts(rows, self._visibility[1][gallery])

    def _divide_by_weights(self, products: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
        """Divide the sums in Eq. 8 by the sums of its weights; 0 where nothing is visible."""
        parts = self._visibility[0].shape[1]
        return products.to(self.dtype).mul_(parts).div_(totals.clamp_min_(TINY))

    def _measure(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features and their norms; for the cosine, which has no length, scale rows.

        Only extreme rows make a copy of the features necessary.
        """
        norms = _compute_norms(features, self.metric)
        low, high = SAFE
        if self.metric == "cosine" and ((norms < low) | (norms > high)).any():
            largest = features.abs().amax(1, keepdim=True)
            features = features / largest.clamp_min(torch.finfo(features.dtype).tiny)
            norms = _compute_norms(features, self.metric)
        return features, norms.to(self.device)

    def _load_gallery(self, gallery: slice) -> torch.Tensor:
        if self._loaded is None or self._loaded[0] != gallery:
            self._loaded = gallery, self._take_gallery(gallery).to(self.device)
        return self._loaded[1]

    def _to_distances(
        self, products: torch.Tensor, query_norms: torch.Tensor, gallery_norms: torch.Tensor
    ) -> torch.Tensor:
        """Turn inner products into distances, in place unless they are in half precision."""
        products = products.to(self.dtype)
        if self.metric == "cosine":
            products.div_(query_norms.clamp_min(TINY)).div_(gallery_norms.clamp_min(TINY))
            return products.neg_().add_(1)
        if self.metric == "euclidean":
            return products.mul_(-2).add_(query_norms.square()).add_(gallery_norms.square())
        return products.neg_()


def _take(rows: torch.Tensor, index: slice | torch.Tensor) -> torch.Tensor:
    """Return some rows: a view, or a copy, for which ``index_select`` is the fastest."""
    return rows[index] if isinstance(index, slice) else rows.index_select(0, index)


def _compute_norms(features: torch.Tensor, metric: str) -> torch.Tensor:
    """Return the norm of each row; zeros for a metric that needs none."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    if metric not in ("cosine", "euclidean"):
        return features.new_zeros(1, dtype=dtype).expand(len(features))
    return torch.linalg.vector_norm(features, dim=1, dtype=dtype)


def limit_sizes(features: torch.Tensor) -> torch.Tensor:
    """Divide features by one number if their products could leave the range of float32.

    A common factor changes distances, by any metric, but not their order.
    """
    low, high = torch.aminmax(features)
    largest = max(-float(low), float(high))
    return features if not largest or SAFE[0] < largest < SAFE[1] else features / largest


def distance_matrix(
    query: torch.Tensor, gallery: torch.Tensor, metric: str,
    visibility: tuple[torch.Tensor, torch.Tensor] = (NO_VISIBILITY, NO_VISIBILITY),
) -> np.ndarray:  # fmt: skip
    """Return all (Q, G) float32 distances at once; see :class:`FeatureDistances`.

    >>> distance_matrix(torch.eye(2), torch.eye(2), "dot").tolist()
    [[-1.0, -0.0], [-0.0, -1.0]]
    """
    return FeatureDistances(query, gallery, metric, visibility=visibility)[:, :]


def split_range(total: int, size: int) -> Iterator[slice]:
    """Split ``range(total)`` into slices of ``size``; the last one may be shorter.

    >>> list(split_range(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def choose_tile_rows(columns: int) -> int:
    """Return how many rows of ``columns`` distances make a tile."""
    return max(MIN_TILE_ROWS, TILE // max(1, columns))
