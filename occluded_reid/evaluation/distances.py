"""Distances by the model's own metric, a tile at a time.

Shapes: Q queries, G gallery images, N images of any kind, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import faiss
import numpy as np
import torch

METRICS = ("cosine", "euclidean", "dot")
TILE = 2**23  # distances held at a time: 32 MiB of float32
LEAST_ROWS = 64  # a tile's rows: fewer would read the gallery too often
TINY = 1e-12


class Tiles(Protocol):
    """A (Q, G) matrix that is read by two slices: an array, or one computed when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(Q, G)."""

    def __getitem__(self, tile: tuple[slice, slice], /) -> np.ndarray:
        """The distances of some queries to some gallery images."""


class FeatureDistances:
    """(Q, G) distances between features; smaller is more alike. Nothing but a tile is ever held.

    Args:
        query: (Q, D), float32. From bfloat16 the products are rounded to 8 bits, 0.4 %, in a
            fraction of the time where the processor has units for it.
        gallery: (G, D), likewise.
        metric: ``cosine`` (1 - cosine), ``euclidean`` (squared) or ``dot`` (minus inner product).
        device: where the products are computed; the features may stay elsewhere.

    Attributes:
        query, gallery, metric, device: as given.
        dtype: of the distances.

    Raises:
        ValueError: an unknown metric.
    """

    def __init__(
        self,
        query: torch.Tensor,
        gallery: torch.Tensor,
        metric: str,
        device: torch.device | str = "cpu",
    ):
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}: cosine, euclidean or dot")
        self.shape = len(query), len(gallery)
        self.device = torch.device(device)
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.query, self.gallery, self.metric = query, gallery, metric
        self._lengths = [
            _lengths(features, metric).to(self.device) for features in (query, gallery)
        ]
        self._held: tuple[slice, torch.Tensor] | None = None

    def __getitem__(self, tile: tuple[slice, slice], /) -> np.ndarray:
        return self.tile(*tile).float().cpu().numpy()

    @torch.no_grad()
    def tile(self, queries: slice | torch.Tensor, gallery: slice) -> torch.Tensor:
        """Return the distances of ``queries`` to ``gallery`` on the device."""
        products = self.query[queries].to(self.device) @ self._part(gallery).T
        return self._from_products(
            products, self._lengths[0][queries, None], self._lengths[1][gallery]
        )

    @torch.no_grad()
    def pairs(self, queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        """Return the distance of each of the queries (n,) to one gallery image (n,): (n,)."""
        lengths = self._lengths[0][queries], self._lengths[1][gallery]
        products = _products(self.query, self.gallery, queries, gallery).to(self.device)
        return self._from_products(products, *lengths)

    def _part(self, gallery: slice) -> torch.Tensor:
        if self._held is None or self._held[0] != gallery:
            self._held = gallery, self.gallery[gallery].to(self.device)
        return self._held[1]

    def _from_products(
        self, products: torch.Tensor, query_lengths: torch.Tensor, gallery_lengths: torch.Tensor
    ) -> torch.Tensor:
        """Turn inner products into distances, in place where they are wide enough."""
        products = products.to(self.dtype)
        if self.metric == "dot":
            return products.neg_()
        if self.metric == "cosine":
            products.div_(query_lengths.clamp_min(TINY)).div_(gallery_lengths.clamp_min(TINY))
            return products.neg_().add_(1)
        return products.mul_(-2).add_(query_lengths.square()).add_(gallery_lengths.square())


def _lengths(features: torch.Tensor, metric: str) -> torch.Tensor:
    """Return what each row's products are to be set off against: (n,); 0 where nothing is."""
    wide = torch.promote_types(features.dtype, torch.float32)
    if metric == "dot":
        return features.new_zeros(1, dtype=wide).expand(len(features))
    return torch.linalg.vector_norm(features, dim=1, dtype=wide)


def _products(
    query: torch.Tensor, gallery: torch.Tensor, queries: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """Return the inner product of each of the queries (n,) with one gallery image (n,): (n,)."""
    queries, images = (places.to(query.device) for places in (queries, images))
    if query.dtype == gallery.dtype == torch.float32 and query.device.type == "cpu":
        return _products_by_faiss(query, gallery, queries, images)
    products = [
        query[queries[part]].mul_(gallery[images[part]]).sum(1)
        for part in spans(len(queries), max(1, TILE // (32 * query.shape[1])))
    ]
    return torch.cat(products)


def _products_by_faiss(
    query: torch.Tensor, gallery: torch.Tensor, queries: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """The same, without a copy of the vectors: three times faster."""
    vectors = [each.contiguous().numpy() for each in (query, gallery)]
    places = [each.to(torch.int64).contiguous().numpy() for each in (queries, images)]
    products = np.empty(len(queries), np.float32)
    pointers = [faiss.swig_ptr(each) for pair in zip(vectors, places, strict=True) for each in pair]
    faiss.pairwise_indexed_inner_product(
        query.shape[1], len(queries), *pointers, faiss.swig_ptr(products)
    )
    return torch.from_numpy(products)


def distance_matrix(query: torch.Tensor, gallery: torch.Tensor, metric: str) -> np.ndarray:
    """Return all (Q, G) float32 distances at once; see :class:`FeatureDistances`."""
    return FeatureDistances(query, gallery, metric)[:, :]


def spans(total: int, size: int) -> Iterator[slice]:
    """Cut ``range(total)`` into slices of ``size``; the last may be shorter."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def rows_at_once(columns: int) -> int:
    """How many rows of so many columns make a tile."""
    return max(LEAST_ROWS, TILE // max(1, columns))


def columns_at_once(columns: int) -> int:
    """How many of so many columns a tile may have, so that its rows are enough."""
    return max(1, min(columns, TILE // LEAST_ROWS))
