"""Exact search by products of half the bytes: a bound on their error says which rows to compare.

Shapes: N rows, Q queries, D feature dimensions.
"""

from __future__ import annotations

import numpy as np
import torch

from gallery_search.exact import BLOCK
from gallery_search.vectors import Vectors
from occluded_reid.evaluation.distances import TILE, spans
from occluded_reid.evaluation.rounded import Rounded

DEPTH = 8  # rows looked through for each one asked for


class Halves:
    """All vectors in memory in bfloat16, 2 D bytes each, for searches that look at every one.

    What may be among the nearest by :class:`Rounded`'s bound has to be compared by the vectors
    themselves, so nothing is missed. It pays where the processor has units for bfloat16.

    Args:
        vectors: (N, D), prepared; they are read once.
        metric: the index's.
    """

    def __init__(self, vectors: Vectors, metric: str):
        self.generation, rows = vectors.generation, len(vectors)
        parts = spans(rows, max(1, BLOCK // vectors.dim))
        self._rounded = Rounded(rows, vectors.dim, torch.bfloat16)
        for part in parts:
            self._rounded[part] = torch.tensor(vectors[part])
        self._half_squares: torch.Tensor | None = None  # |v|^2 / 2, for the squared distance
        if metric == "euclidean":
            self._half_squares = self._rounded.lengths.square() / 2

    def __len__(self) -> int:
        return len(self._rounded)

    @torch.no_grad()
    def candidates(
        self, queries: np.ndarray, count: int, removed: np.ndarray
    ) -> list[np.ndarray | None]:
        """Return for each query the rows among which its ``count`` nearest are, in no order.

        None where they are too many: then all rows have to be compared.

        Args:
            queries: (Q, D), prepared.
            count: at most N without the removed ones.
            removed: rows that are no answers.
        """
        found: list[np.ndarray | None] = []
        depth = min(DEPTH * count, len(self) - len(removed))
        for part in spans(len(queries), max(1, TILE // max(1, len(self)))):
            asked = torch.from_numpy(queries[part])
            products = asked.bfloat16() @ self._rounded.values.T  # (q, N)
            low, high = products.aminmax(dim=1)
            largest = torch.maximum(-low, high).float() * self._rounded.rounding
            scores = products
            if self._half_squares is not None:
                scores = products.float().sub_(self._half_squares)
            scores[:, torch.from_numpy(removed)] = -torch.inf
            best, rows = scores.topk(depth, dim=1)
            best = best.float()
            margins = 2 * (self._rounded.bounds(asked) + largest)
            enough = best >= (best[:, count - 1] - margins)[:, None]
            for row, kept in zip(rows.numpy(), enough.sum(1).tolist(), strict=True):
                whole = kept < depth or depth == len(self) - len(removed)
                found.append(row[:kept] if whole else None)
        return found
