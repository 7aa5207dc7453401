"""What a store compares: vectors that are fit for it, and their similarity.

Shapes: N images, Q queries, D dimensions of a vector, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gallery_search.store.metadata import IndexInfo, Item, check_path
from occluded_reid.evaluation.distances import TINY
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.modeling.similarity import make_query_rows, make_rows
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.terminal import show

DEPTH, MIN_DEPTH = 10, 100  # proposals per hit, and at least, of a search that is not exact
SPARE = 16  # extra proposals of an exact search, as engines round otherwise

NORMS = 1e-18, 1e18
"""Smallest and largest norm of a vector whose products float32 can hold."""


def prepare_batch(
    info: IndexInfo, items: Sequence[Item], features: np.ndarray | Embedding,
    visibility: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return vectors (N, D) and visibility (N, P) to store, or raise a UserError."""
    if isinstance(features, Embedding):
        visibility = features.visibility
        features = make_rows(features.tensors(), info.metric).numpy()
    names = [check_path(item.path) for item in items]
    values = prepare_vectors(features, info.metric, info.dim, names)
    empty = np.empty((len(items), 0))
    visibility = np.asarray(empty if visibility is None else visibility, np.float32)
    if len(values) != len(items) or visibility.shape != (len(items), info.num_parts):
        raise UserError(
            f"{len(items)} items, features {values.shape} and visibility {visibility.shape} do not "
            f"fit: expected vectors of dimension {info.dim} and {info.num_parts} parts"
        )
    if len(set(names)) < len(names):
        raise UserError(f"{show(max(names, key=names.count))} is added twice at once")
    return values, visibility


def prepare_queries(info: IndexInfo, features: np.ndarray | Embedding, top: int) -> np.ndarray:
    """Return the vectors (Q, D) of queries, or raise a UserError."""
    if top < 1:
        raise UserError(f"the number of hits is {top}; expected at least 1")
    if isinstance(features, Embedding):
        features = make_query_rows(features.tensors(), info.metric).numpy()
    return prepare_vectors(features, info.metric, info.dim)


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


def compute_similarities(
    query: np.ndarray,
    vectors: np.ndarray,
    metric: str,
    visibility: np.ndarray | None = None,
) -> np.ndarray:
    """Return the similarities (N,) float64 of vectors (N, D) to a query (D,).

    They are cosines, inner products, or minus the squared Euclidean distances, and depend on the
    two vectors only. With ``visibility`` (N, P) they are ``shared``.
    """
    terms = -np.square(vectors - query) if metric == "euclidean" else vectors * query
    if visibility is not None:
        parts = visibility.shape[1]
        own = np.linalg.norm(query.reshape(parts, -1), axis=1) / parts**0.5  # visibility / P
        cosines = terms.reshape(*visibility.shape, -1).sum(2, dtype=np.float64)  # times own
        weights = np.maximum(visibility @ own, TINY)  # 0 where nothing is visible in both
        similarities = (cosines * visibility).sum(1) / weights
    else:
        similarities = terms.sum(1, dtype=np.float64)
    bound = 1 if metric in ("cosine", "shared") else np.inf  # which rounding may exceed
    return np.clip(similarities, -bound, bound)


def choose_depth(top: int) -> int:
    """Return the number of proposals for ``top`` hits."""
    return max(MIN_DEPTH, DEPTH * top)
