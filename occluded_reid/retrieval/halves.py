"""Exact search by products of half the bytes: a bound on their error says which rows to compare.

Shapes: N rows, Q queries, D feature dimensions.
"""

from __future__ import annotations

import numpy as np
import torch

from occluded_reid.evaluation.similarity import TILE, spans
from occluded_reid.retrieval.exact import BLOCK
from occluded_reid.retrieval.vectors import Vectors

ROUNDING = 2.0**-8  # of a product in bfloat16: it is off by at most this share of itself
ADDITION = 2.0**-23  # of a sum in float32, for each of its D terms; twice the usual bound
DEPTH = 8  # rows looked through for each one asked for


class Halves:
    """All vectors in memory in bfloat16, 2 D bytes each, for searches that look at every one.

    With q', v' the rounded q, v: ``|q' v' - q v| <= |q - q'| |v'| + |q| |v - v'|``; to this come
    the errors of addition and of the rounded result. What may be among the nearest by this bound
    has to be compared by the vectors themselves, so nothing is missed. It pays where the processor
    has units for bfloat16.

    Args:
        vectors: (N, D), prepared; they are read once.
        metric: the index's.
    """

    def __init__(self, vectors: Vectors, metric: str):
        self.generation, rows = vectors.generation, len(vectors)
        parts = spans(rows, max(1, BLOCK // vectors.dim))
        self._values = torch.empty(rows, vectors.dim, dtype=torch.bfloat16)
        self._half_squares: torch.Tensor | None = None  # |v|^2 / 2, for the squared distance
        lengths, errors = torch.zeros(2, rows)
        for part in parts:
            read = torch.tensor(vectors[part])
            self._values[part] = read
            lengths[part] = torch.linalg.vector_norm(read, dim=1)
            errors[part] = torch.linalg.vector_norm(read - self._values[part], dim=1)
        if metric == "euclidean":
            self._half_squares = lengths.square() / 2
        self._longest = float((lengths + errors).max()) if rows else 0.0
        self._widest = float(errors.max()) if rows else 0.0

    def __len__(self) -> int:
        return len(self._values)

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
            products = asked.bfloat16() @ self._values.T  # (q, N)
            low, high = products.aminmax(dim=1)
            largest = torch.maximum(-low, high).float() * ROUNDING / (1 - ROUNDING)
            scores = products
            if self._half_squares is not None:
                scores = products.float().sub_(self._half_squares)
            scores[:, torch.from_numpy(removed)] = -torch.inf
            best, rows = scores.topk(depth, dim=1)
            best = best.float()
            margins = 2 * (self._errors(asked) + largest)
            enough = best >= (best[:, count - 1] - margins)[:, None]
            for row, kept in zip(rows.numpy(), enough.sum(1).tolist(), strict=True):
                whole = kept < depth or depth == len(self) - len(removed)
                found.append(row[:kept] if whole else None)
        return found

    def _errors(self, queries: torch.Tensor) -> torch.Tensor:
        """Return how far a query's (Q,) products may be off before they are rounded."""
        lengths = torch.linalg.vector_norm(queries, dim=1)
        own = torch.linalg.vector_norm(queries - queries.bfloat16(), dim=1)
        sums = (lengths + own + self._longest) * self._longest
        addition = ADDITION * queries.shape[1] * sums
        return own * self._longest + lengths * self._widest + addition
