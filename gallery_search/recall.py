"""How much of the truth an approximation finds, and how far it has to search for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gallery_search.approximation import propose
from gallery_search.exact import SPARE, nearest_rows, ranked
from gallery_search.vectors import Vectors

HITS = 10  # the recall is that of the 10 nearest
QUERIES = 200
GOAL = 0.97
DEPTH = 100  # proposals, as a search for 10 hits has them
LEAST_EFFORT, MOST_EFFORT = 8, 1024


class Recall(NamedTuple):
    """The recall, in [0, 1], measured by so many queries at the effort that was chosen."""

    effort: int
    recall: float
    queries: int


def measured(
    index: Any, vectors: Vectors, metric: str, living: np.ndarray, seed: int = 0
) -> Recall:
    """Double the effort until recall@10 against exact search reaches the goal, or no further.

    The queries are vectors of the gallery, each held out of its own answer. A hit counts if it is
    at least as similar as the true tenth, so that copies of an image do no harm.

    Args:
        index: of :func:`gallery_search.approximation.build`.
        vectors: (N, D), all of them.
        living: rows that were not removed.
        seed: which of them ask.
    """
    size = min(QUERIES, len(living))
    rows = np.sort(np.random.default_rng(seed).choice(living, size, replace=False))
    queries = vectors[rows]
    near = nearest_rows(vectors, queries, HITS + 1 + SPARE, metric, living)
    truth = [
        _best(vectors, query, found, metric, row)
        for query, found, row in zip(queries, near, rows, strict=True)
    ]
    effort = LEAST_EFFORT
    while True:
        proposed = propose(index, queries, DEPTH, effort, living)
        shares = [
            (_best(vectors, query, found, metric, row) >= true[-1]).sum() / len(true)
            for query, found, row, true in zip(queries, proposed, rows, truth, strict=True)
        ]
        recall = float(np.mean(shares))
        if recall >= GOAL or effort >= MOST_EFFORT:
            return Recall(effort, recall, size)
        effort *= 2


def _best(
    vectors: Vectors, query: np.ndarray, found: np.ndarray, metric: str, own: int
) -> np.ndarray:
    """Return the similarities of the ten best rows found, but for the query's own."""
    return ranked(vectors, query, found[found != own], HITS, metric)[1]
