"""Similarity by the model's metric, and search that compares every vector.

Shapes: N gallery images, Q queries, D feature dimensions.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gallery_search.store.vectors import Vectors
from occluded_reid.evaluation.distances import TINY, split_range
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.terminal import show

BLOCK = 2**24  # values in a block of vectors that is searched at once: 64 MiB
SPARE = 16  # extra rows per query, because faiss rounds otherwise than `rank_rows`
MAX_ON_GPU = 2048  # neighbors that faiss can find on a GPU

NORMS = 1e-18, 1e18
"""Smallest and largest norm of a vector whose products float32 can hold."""

_gpu_lock = threading.Lock()  # the resources serve one thread at a time


def prepare_vectors(
    features: np.ndarray, metric: str, dim: int, names: Sequence[str] = ()
) -> np.ndarray:
    """Return (N, D) float32 vectors for storage or search, with norm 1 for ``cosine``.

    Vectors that are zero, not finite, or too large or small for products in float32 are a
    UserError; ``names`` (N,) are those of the images in it.

    >>> prepare_vectors(np.array([[3.0, 4.0]]), "cosine", 2)
    array([[0.6, 0.8]], dtype=float32)
    """
    features = np.ascontiguousarray(features, np.float32)
    if features.ndim != 2 or features.shape[1] != dim:
        raise UserError(f"features of shape {features.shape} do not fit: expected (N, {dim})")
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    low, high = (0, np.inf) if metric == "cosine" else NORMS
    usable = ((low < norms) & (norms < high)).ravel()
    if not usable.all():
        first = int(usable.argmin())
        name = names[first] if first < len(names) else f"image {first}"
        raise UserError(
            f"the features of {show(name)} have the norm {norms[first, 0]:.3g}, with which nothing "
            "can be compared; the weights are broken"
        )
    return (features / norms).astype(np.float32) if metric == "cosine" else features


def rank_rows(
    vectors: Vectors, query: np.ndarray, rows: np.ndarray, top: int, metric: str,
    read_visibility: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the ``top`` best of some rows and their float64 similarities to a query (D,).

    The similarity is the cosine, the inner product, or minus the squared Euclidean distance; it
    depends on the two vectors only, not on other rows. With ``read_visibility``, which returns that
    of some rows (n, P), it is ``shared``. The best come first, ties in the order in which rows were
    added; row -1 is ignored.
    """
    rows = np.unique(rows[rows >= 0])
    found = vectors[rows]
    terms = -np.square(found - query) if metric == "euclidean" else found * query
    if read_visibility is None:
        similarities = terms.sum(1, dtype=np.float64)
    else:
        visibility = read_visibility(rows)
        parts = visibility.shape[1]
        own = np.linalg.norm(query.reshape(parts, -1), axis=1) / parts**0.5  # visibility / P
        cosines = terms.reshape(*visibility.shape, -1).sum(2, dtype=np.float64)  # times own
        weights = np.maximum(visibility @ own, TINY)  # 0 where nothing is visible in both
        similarities = (cosines * visibility).sum(1) / weights
    order = np.argsort(-similarities, kind="stable")[:top]
    bound = 1 if metric in ("cosine", "shared") else np.inf  # which rounding may exceed
    return rows[order], np.clip(similarities[order], -bound, bound)


def resolve_faiss_metric(metric: str) -> int:
    """Return faiss's constant for a metric."""
    import faiss

    return faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT


def find_nearest(
    vectors: Vectors, queries: np.ndarray, count: int, metric: str, selected: np.ndarray
) -> np.ndarray:
    """Return the ``count`` nearest rows of each query, unordered: (Q, count) int64, -1 for none.

    The queries (Q, D) are prepared; ``selected`` (n,) are the rows to search, ascending.
    """
    import faiss

    heap = faiss.ResultHeap(len(queries), count, keep_max=metric != "euclidean")
    options = {"metric": resolve_faiss_metric(metric)}
    resources = get_gpu_resources() if count <= MAX_ON_GPU else None
    for part in split_range(len(selected), max(1, BLOCK // queries.shape[1])):
        rows = selected[part]
        contiguous = rows[-1] - rows[0] == len(rows) - 1
        block = vectors[slice(rows[0], rows[-1] + 1) if contiguous else rows]  # a slice is no copy
        most = min(count, len(block))
        if resources is None:
            scores, positions = faiss.knn(queries, block, most, **options)
        else:
            with _gpu_lock:
                scores, positions = faiss.knn_gpu(resources, queries, block, most, **options)
        # indexing with -1 would give the last row
        heap.add_result(scores, np.where(positions < 0, -1, rows[positions]))
    return heap.I


@functools.cache
def get_gpu_resources() -> Any:
    """Return faiss's GPU resources, or None without faiss-gpu or a GPU."""
    import faiss

    return faiss.StandardGpuResources() if getattr(faiss, "get_num_gpus", int)() else None
