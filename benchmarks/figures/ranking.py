"""``ranking`` and ``ranking_memory``: the ranks of all positives from given distances.

The reference is fast-reid's Cython code if it is compiled, else its Python code on a tenth of the
queries, since that is about twenty times slower.
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
    """Compare time and peak memory beside the distances."""
    inputs = make_inputs(queries, gallery)

    def ours() -> Any:
        return rank_queries(*inputs)

    def reference() -> Any:
        return evaluate_rank(*inputs, max_rank=min(50, gallery))

    check_agreement(ours(), reference())
    size = f"{queries} x {gallery}, against fast-reid's {KIND}"
    memory = [[measure_peak(work) / 1e6] for work in (ours, reference)]
    return {
        "ranking": make_figure(time_alternately(ours, reference, rounds=rounds), f"s, {size}"),
        "ranking_memory": make_figure(memory, f"MB, {size}"),
    }


def make_inputs(queries: int, gallery: int) -> tuple[np.ndarray, ...]:
    """Return random distances without ties in a row, identities and cameras."""
    rng = np.random.default_rng(0)
    order = np.tile(np.arange(gallery, dtype=np.float32), (queries, 1))
    distances = rng.permuted(order, axis=1, out=order)
    distances /= gallery
    identities = max(2, gallery // 16)
    labels = [rng.integers(0, identities, size) for size in (queries, gallery)]
    cameras = [rng.integers(0, 8, size) for size in (queries, gallery)]
    return (distances, *labels, *cameras)


def check_agreement(ours: Any, reference: Any) -> None:
    """Compare average precision and INP of every query, and the CMC curve.

    Raises:
        MismatchError: they differ.
    """
    cmc, precision, penalty = reference
    require_equal("average precision", ours.average_precision, precision, atol=1e-6)
    require_equal("inverse negative penalty", ours.inverse_negative_penalty, penalty, atol=1e-6)
    own = [ours.rank_k(rank + 1).mean() for rank in range(len(cmc))]
    require_equal("CMC curve", own, cmc, atol=1e-6)


def measure_peak(work: Callable[[], Any]) -> int:
    """Return the peak memory of ``work`` in bytes, as Python and NumPy allocate it."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
