"""Similarity by the model's own metric, and search that looks at every vector.

Shapes: N gallery images, Q queries, D feature dimensions.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

from gallery_search.vectors import Rows, Vectors
from occluded_reid.evaluation.distances import METRICS, TINY, spans
from occluded_reid.utils.errors import UserError

BLOCK = 2**24  # numbers of a block of vectors that is searched at a time: 64 MiB
SPARE = 16  # rows found beyond those asked for, since the scan rounds otherwise than `similarity`
MOST_ON_GPU = 2048  # neighbours that faiss finds on a GPU

_gpu_lock = threading.Lock()


def prepared(features: np.ndarray, metric: str, dim: int) -> np.ndarray:
    """Return (N, D) float32 vectors as they are kept and asked with: of length 1 for ``cosine``.

    Raises:
        UserError: another shape, or values that are no finite numbers.
    """
    features = np.ascontiguousarray(features, np.float32)
    if features.ndim != 2 or features.shape[1] != dim:
        raise UserError(f"features of shape {features.shape} do not fit: expected (N, {dim})")
    if not np.isfinite(features).all():
        place = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise UserError(f"the features of image {place} hold NaN or infinity; look at the model")
    if metric == "cosine":
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        return features / np.maximum(lengths, TINY)
    return features


def similarities(query: np.ndarray, found: np.ndarray, metric: str) -> np.ndarray:
    """Return how much one query (D,) is like each of (n, D) prepared vectors: (n,) float64.

    Larger is more alike: the cosine, minus the squared Euclidean distance, or the inner product;
    all of them minus the distance of :mod:`occluded_reid.evaluation.distances`, but for the
    cosine's constant 1. The number depends on the two vectors only, never on their neighbours.
    """
    if metric == "euclidean":
        return -np.square(found - query).sum(1, dtype=np.float64)
    return (found * query).sum(1, dtype=np.float64)


def ranked(
    vectors: Vectors, query: np.ndarray, rows: np.ndarray, top: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Compare a query with some rows; return the best rows and their similarities, best first.

    Equal ones stand in the order in which they were added.

    Args:
        query: (D,), prepared.
        rows: those to compare it with; -1 stands for none.
        top: how many to return at most.
    """
    rows = np.unique(rows[rows >= 0])
    found = similarities(query, vectors[rows], metric)
    order = np.argsort(-found, kind="stable")[:top]
    return rows[order], found[order]


def faiss_metric(metric: str) -> int:
    """The number by which faiss knows a metric."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: cosine, euclidean or dot")
    return faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT


def nearest_rows(
    vectors: Vectors, queries: np.ndarray, count: int, metric: str, selected: np.ndarray
) -> np.ndarray:
    """Return the rows most like each query, in no order: (Q, count) int64, -1 where there are less.

    Args:
        queries: (Q, D), prepared.
        count: how many are looked for.
        selected: (n,) the rows to look at, ascending.
    """
    heap = faiss.ResultHeap(len(queries), count, keep_max=metric != "euclidean")
    for rows, numbers in _blocks(selected, max(1, BLOCK // queries.shape[1])):
        block = vectors[rows]
        scores, places = _neighbours(queries, block, min(count, len(block)), metric)
        # -1 would become the last row
        heap.add_result(scores, np.where(places < 0, -1, numbers[places]))
    return heap.I


def _blocks(selected: np.ndarray, size: int) -> Iterator[tuple[Rows, np.ndarray]]:
    """Cut rows into blocks; one without gaps is a slice, which costs no copy."""
    for part in spans(len(selected), size):
        numbers = selected[part]
        gapless = numbers[-1] - numbers[0] == len(numbers) - 1
        yield (slice(numbers[0], numbers[-1] + 1) if gapless else numbers), numbers


def _neighbours(
    queries: np.ndarray, block: np.ndarray, count: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    kind, resources = faiss_metric(metric), gpu()
    if resources is None or count > MOST_ON_GPU:
        return faiss.knn(queries, block, count, metric=kind)
    with _gpu_lock:  # the resources are for one thread at a time
        return faiss.knn_gpu(resources, queries, block, count, metric=kind)


@functools.cache
def gpu() -> Any:
    """What a search on the GPU needs, where faiss-gpu is installed and finds one; else None."""
    return faiss.StandardGpuResources() if getattr(faiss, "get_num_gpus", int)() else None
