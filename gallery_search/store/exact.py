"""Similarity by the model's metric, and search that compares every vector.

Shapes: N gallery images, Q queries, D feature dimensions.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from gallery_search.store.vectors import Rows, Vectors
from occluded_reid.evaluation.distances import METRICS, TINY, split_range
from occluded_reid.utils.errors import UserError

BLOCK = 2**24  # values in a block of vectors that is searched at once: 64 MiB
SPARE = 16  # extra rows per query, because faiss rounds otherwise than `compute_similarities`
MAX_ON_GPU = 2048  # neighbors that faiss can find on a GPU

_gpu_lock = threading.Lock()


def prepare_vectors(features: np.ndarray, metric: str, dim: int) -> np.ndarray:
    """Return (N, D) float32 vectors for storage or search, with norm 1 for ``cosine``.

    Raises:
        UserError: Another shape, or values that are not finite.

    >>> prepare_vectors(np.array([[3.0, 4.0]]), "cosine", 2)
    array([[0.6, 0.8]], dtype=float32)
    """
    features = np.ascontiguousarray(features, np.float32)
    if features.ndim != 2 or features.shape[1] != dim:
        raise UserError(f"features of shape {features.shape} do not fit: expected (N, {dim})")
    if not np.isfinite(features).all():
        index = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise UserError(f"the features of image {index} hold NaN or infinity; check the model")
    if metric == "cosine":
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        return features / np.maximum(norms, TINY)
    return features


def compute_similarities(query: np.ndarray, vectors: np.ndarray, metric: str) -> np.ndarray:
    """Return the similarity of a query (D,) to each of (n, D) prepared vectors: (n,) float64.

    Higher is more similar: the cosine, the inner product, or minus the squared Euclidean distance.
    The result depends on the two vectors only, not on other rows.
    """
    if metric == "euclidean":
        return -np.square(vectors - query).sum(1, dtype=np.float64)
    return (vectors * query).sum(1, dtype=np.float64)


def rank_rows(
    vectors: Vectors, query: np.ndarray, rows: np.ndarray, top: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``top`` best of some rows and their similarities, best first.

    Ties keep the order in which rows were added.

    Args:
        vectors: (N, D).
        query: (D,), prepared.
        rows: Candidates; -1 is ignored.
        top: Maximum number of results.
        metric: The index's.
    """
    rows = np.unique(rows[rows >= 0])
    similarities = compute_similarities(query, vectors[rows], metric)
    order = np.argsort(-similarities, kind="stable")[:top]
    return rows[order], similarities[order]


def resolve_faiss_metric(metric: str) -> int:
    """Return faiss's constant for a metric."""
    import faiss

    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: cosine, euclidean or dot")
    return faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT


def find_nearest(
    vectors: Vectors, queries: np.ndarray, count: int, metric: str, selected: np.ndarray
) -> np.ndarray:
    """Return the ``count`` nearest rows of each query, unordered: (Q, count) int64, -1 for none.

    Args:
        vectors: (N, D).
        queries: (Q, D), prepared.
        count: Rows per query.
        metric: The index's.
        selected: (n,) rows to search, ascending.
    """
    import faiss

    heap = faiss.ResultHeap(len(queries), count, keep_max=metric != "euclidean")
    for rows, numbers in _split_into_blocks(selected, max(1, BLOCK // queries.shape[1])):
        block = vectors[rows]
        scores, positions = _search_block(queries, block, min(count, len(block)), metric)
        # indexing with -1 would give the last row
        heap.add_result(scores, np.where(positions < 0, -1, numbers[positions]))
    return heap.I


def _split_into_blocks(selected: np.ndarray, size: int) -> Iterator[tuple[Rows, np.ndarray]]:
    """Yield blocks of rows; a block without gaps is a slice, which needs no copy."""
    for part in split_range(len(selected), size):
        numbers = selected[part]
        contiguous = numbers[-1] - numbers[0] == len(numbers) - 1
        yield (slice(numbers[0], numbers[-1] + 1) if contiguous else numbers), numbers


def _search_block(
    queries: np.ndarray, block: np.ndarray, count: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    faiss_metric, resources = resolve_faiss_metric(metric), get_gpu_resources()
    if resources is None or count > MAX_ON_GPU:
        return faiss.knn(queries, block, count, metric=faiss_metric)
    with _gpu_lock:  # the resources serve one thread at a time
        return faiss.knn_gpu(resources, queries, block, count, metric=faiss_metric)


@functools.cache
def get_gpu_resources() -> Any:
    """Return faiss's GPU resources, or None without faiss-gpu or a GPU."""
    import faiss

    return faiss.StandardGpuResources() if getattr(faiss, "get_num_gpus", int)() else None
