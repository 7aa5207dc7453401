"""Recall of an approximation, and the search effort that reaches the goal."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gallery_search.store.approximation import propose_rows
from gallery_search.store.exact import SPARE, find_nearest, rank_rows
from gallery_search.store.vectors import Vectors

HITS = 10  # recall@10
QUERIES = 200
GOAL = 0.97
DEPTH = 100  # proposals, as in a search for 10 hits
MIN_EFFORT, MAX_EFFORT = 8, 1024


class Recall(NamedTuple):
    """The recall in [0, 1] that an effort reached, and the number of queries behind it."""

    effort: int
    recall: float
    queries: int


def measure_recall(
    index: Any, vectors: Vectors, metric: str, valid: np.ndarray, seed: int = 0
) -> Recall:
    """Double the effort until recall@10 against exact search reaches the goal, or the limit.

    Queries are vectors of the gallery; each is excluded from its own results. A hit counts if it is
    at least as similar as the true tenth, so duplicate images do not lower the recall.

    Args:
        index: Of :func:`~gallery_search.store.approximation.build_faiss_index`.
        vectors: (N, D).
        metric: The index's.
        valid: Rows that were not removed.
        seed: Selects the queries.
    """
    size = min(QUERIES, len(valid))
    rows = np.sort(np.random.default_rng(seed).choice(valid, size, replace=False))
    queries = vectors[rows]

    def rank_others(candidates: np.ndarray) -> list[np.ndarray]:
        """Return the best similarities of each query's candidates, without its own row."""
        return [
            rank_rows(vectors, query, found[found != row], HITS, metric)[1]
            for query, found, row in zip(queries, candidates, rows, strict=True)
        ]

    truth = rank_others(find_nearest(vectors, queries, HITS + 1 + SPARE, metric, valid))
    effort = MIN_EFFORT
    while True:
        proposed = rank_others(propose_rows(index, queries, DEPTH, effort, valid))
        shares = [
            (found >= true[-1]).sum() / len(true)
            for found, true in zip(proposed, truth, strict=True)
        ]
        recall = float(np.mean(shares))
        if recall >= GOAL or effort >= MAX_EFFORT:
            return Recall(effort, recall, size)
        effort *= 2
