"""``ranking`` and ``ranking_memory``: ranks of all right answers, from given distances.

The reference is fast-reid's: its Cython code where that was compiled, else its Python code, which
gets a tenth of the queries: it takes some twenty times as long.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from fastreid.evaluation.rank import IS_CYTHON_AVAI, evaluate_rank
from harness.comparison import Figure, make_figure, require_equal, time_alternately

from occluded_reid.evaluation.ranking import rank_queries

NAMES = ("ranking", "ranking_memory")
KIND = "Cython" if IS_CYTHON_AVAI else "Python"
QUERIES = 2210 if IS_CYTHON_AVAI else 221


def measure(queries: int = QUERIES, gallery: int = 17661, rounds: int = 3) -> dict[str, Figure]:
    """Compare time and the most memory that is held beside the distances."""
    given = draw(queries, gallery)

    def ours() -> Any:
        return rank_queries(*given)

    def reference() -> Any:
        return evaluate_rank(*given, max_rank=min(50, gallery))

    check(ours(), reference())
    size = f"{queries} x {gallery}, against fast-reid's {KIND}"
    memory = [[peak_bytes(work) / 1e6] for work in (ours, reference)]
    return {
        "ranking": make_figure(time_alternately(ours, reference, rounds=rounds), f"s, {size}"),
        "ranking_memory": make_figure(memory, f"MB, {size}"),
    }


def draw(queries: int, gallery: int) -> tuple[np.ndarray, ...]:
    """Return distances, identities and cameras; in a row no distance comes twice."""
    random = np.random.default_rng(0)
    order = np.tile(np.arange(gallery, dtype=np.float32), (queries, 1))
    distances = random.permuted(order, axis=1, out=order)
    distances /= gallery
    identities = max(2, gallery // 16)
    labels = [random.integers(0, identities, size) for size in (queries, gallery)]
    cameras = [random.integers(0, 8, size) for size in (queries, gallery)]
    return (distances, *labels, *cameras)


def check(ours: Any, reference: Any) -> None:
    """Check every query's precision and penalty, and the matching curve.

    Raises:
        MismatchError: one differs.
    """
    curve, precision, penalty = reference
    require_equal("average precision", ours.average_precision, precision, atol=1e-6)
    require_equal("inverse negative penalty", ours.inverse_negative_penalty, penalty, atol=1e-6)
    own = [ours.rank_k(rank + 1).mean() for rank in range(len(curve))]
    require_equal("matching curve", own, curve, atol=1e-6)


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most memory that ``work`` holds at a time, by Python's and NumPy's own count."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
