"""Vectors on disk: a float32 file that only grows, mapped into memory, and exact search in it.

Shapes: N rows, Q queries, D feature dimensions.
"""

from __future__ import annotations

import os
from pathlib import Path

import faiss
import numpy as np

from gallery_search.store import explain_damage
from occluded_reid.evaluation.distances import split_range
from occluded_reid.utils.files import atomic_write, explain_write_errors

BLOCK = 2**24  # values in a block of vectors that is searched at once: 64 MiB


class Vectors:
    """The first N rows of a file, (N, D) float32; a view that never changes.

    The gallery may be larger than memory. Each row is compared with its parity word when it is read
    for the first time.

    Args:
        path: The file; it may be longer.
        dim: D.
        parity: (N,) uint32, of :func:`compute_parity`.
        earlier: Another view of this file; what it has checked is not checked again.

    Raises:
        FileNotFoundError, UserError: The file is missing; it is too short.
    """

    def __init__(self, path: Path, dim: int, parity: np.ndarray, earlier: Vectors | None = None):
        self.path, self.parity = path, parity
        self._values = np.empty((0, dim), np.float32)
        if rows := len(parity):
            _check_size(path, 4 * rows * dim)
            # a plain array: slices of a memmap are slow
            self._values = np.asarray(np.memmap(path, np.float32, mode="r", shape=(rows, dim)))
        self._verified = np.zeros(rows, bool)
        if earlier is not None:
            self._verified[: len(earlier)] = earlier._verified[:rows]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return (n, D) intact rows: a slice as a view of the file, an index array as a copy."""
        values = self._values[rows]
        if not self._verified[rows].all():
            damaged = compute_parity(values) != self.parity[rows]
            if damaged.any():
                row = np.arange(len(self))[rows][damaged][0]
                raise explain_damage(self.path, f"is damaged at row {row}")
            self._verified[rows] = True
        return values


def compute_parity(values: np.ndarray) -> np.ndarray:
    """Return the exclusive or of each row's 32-bit words: (N, D) float32 -> (N,) uint32."""
    return np.bitwise_xor.reduce(values.view(np.uint32), axis=1)


def append_vectors(path: Path, rows: int, values: np.ndarray) -> None:
    """Write ``values`` (n, D) float32 after the first ``rows`` rows and flush them to the disk.

    This overwrites rows that an interrupted writer left; no reader looks at those.
    """
    if not rows:
        with atomic_write(path):
            pass  # flushes the file's name, before the database refers to it
    with explain_write_errors(path), open(path, "r+b") as stream:
        _check_size(path, rows * values.itemsize * values.shape[1])
        stream.seek(rows * values.itemsize * values.shape[1])
        stream.truncate()
        stream.write(np.ascontiguousarray(values).tobytes())
        stream.flush()
        os.fsync(stream.fileno())


def resolve_faiss_metric(metric: str) -> int:
    """Return faiss's constant for a metric."""
    return faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT


def find_nearest(
    vectors: Vectors, queries: np.ndarray, count: int, metric: str, selected: np.ndarray
) -> np.ndarray:
    """Return the ``count`` nearest rows of each query, unordered: (Q, count) int64, -1 for none.

    The queries (Q, D) are prepared; ``selected`` (n,) are the rows to search, ascending.
    """
    heap = faiss.ResultHeap(len(queries), count, keep_max=metric != "euclidean")
    for part in split_range(len(selected), max(1, BLOCK // queries.shape[1])):
        rows = selected[part]
        contiguous = rows[-1] - rows[0] == len(rows) - 1
        block = vectors[slice(rows[0], rows[-1] + 1) if contiguous else rows]  # a slice is no copy
        most = min(count, len(block))
        scores, positions = faiss.knn(queries, block, most, metric=resolve_faiss_metric(metric))
        # indexing with -1 would give the last row
        heap.add_result(scores, np.where(positions < 0, -1, rows[positions]))
    return heap.I


def _check_size(path: Path, expected: int) -> None:
    if (size := path.stat().st_size) < expected:
        raise explain_damage(path, f"is {size} bytes long instead of at least {expected}")
