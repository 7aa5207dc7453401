"""Vectors in half the bytes, and how far their inner products may be off.

Shapes: N vectors, Q queries, D feature dimensions.
"""

from __future__ import annotations

import torch

ADDITION = 2.0**-23  # of a sum in float32, for each of its D terms; twice the usual bound


class Rounded:
    """N vectors in bfloat16 or float16, filled a part at a time.

    With q', v' the rounded q, v: ``|q' v' - q v| <= |q - q'| |v'| + |q| |v - v'|``; to this come
    the errors of addition, and what a processor loses that takes the tiniest numbers for 0.

    Attributes:
        values: (N, D) rounded.
        lengths: (N,) of the vectors themselves.
    """

    def __init__(self, rows: int, dim: int, dtype: torch.dtype):
        self.values = torch.empty(rows, dim, dtype=dtype)
        self.lengths, self._errors = torch.zeros(2, rows)

    def __len__(self) -> int:
        return len(self.values)

    def __setitem__(self, part: slice, vectors: torch.Tensor) -> None:
        self.values[part] = vectors
        self.lengths[part] = torch.linalg.vector_norm(vectors, dim=1)
        self._errors[part] = self._error(vectors, self.values[part])

    @property
    def rounding(self) -> float:
        """The share of itself by which a product is off when it is rounded, at most."""
        unit = torch.finfo(self.values.dtype).eps / 2
        return unit / (1 - unit)

    @property
    def longest(self) -> float:
        """No vector is longer, rounded or not."""
        return float((self.lengths + self._errors).max()) if len(self) else 0.0

    def bounds(self, queries: torch.Tensor) -> torch.Tensor:
        """Return (Q,): how far a query's products may be off before they are rounded themselves.

        Args:
            queries: (Q, D), not rounded yet.
        """
        lengths, longest = torch.linalg.vector_norm(queries, dim=1), self.longest
        own = self._error(queries, queries.to(self.values.dtype))
        widest = float(self._errors.max()) if len(self) else 0.0
        terms = queries.shape[1] + 2  # two more for a length that is added to the product
        addition = ADDITION * terms * (lengths + own + longest) * longest
        return own * longest + lengths * widest + addition

    @staticmethod
    def _error(vectors: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        lost = torch.finfo(rounded.dtype).smallest_normal * vectors.shape[1] ** 0.5
        return torch.linalg.vector_norm(vectors - rounded, dim=1) + lost
