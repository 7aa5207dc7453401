"""Vectors on disk: a float32 file that only grows, mapped into memory, with a parity word per row.

Shapes: N rows, D feature dimensions.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from gallery_search.store import explain_damage
from gallery_search.store.metadata import IndexInfo
from occluded_reid.utils.files import atomic_write, explain_write_errors


class Vectors:
    """The first N rows of a generation, (N, D) float32; a view that never changes.

    The gallery may be larger than memory. Each row is compared with its parity word when it is read
    for the first time.

    Args:
        folder: The index.
        info: Its description, which gives N; the files may be longer.
        earlier: Another view; what it has checked of the same generation is not checked again.

    Raises:
        FileNotFoundError: A file is missing.
        UserError: A file is shorter than it should be.
    """

    def __init__(self, folder: Path, info: IndexInfo, earlier: Vectors | None = None):
        self.generation = info.generation
        self.path, parity = vector_paths(folder, info.generation)
        self._values = _map_file(self.path, (info.rows, info.dim), np.float32)
        self._parity = _map_file(parity, (info.rows,), np.uint32)
        self._verified = np.zeros(info.rows, bool)
        if earlier is not None and earlier.generation == info.generation:
            known = min(info.rows, len(earlier))
            self._verified[:known] = earlier._verified[:known]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return (n, D) intact rows: a slice as a view of the file, an index array as a copy."""
        values = self._values[rows]
        if not self._verified[rows].all():
            damaged = compute_parity(values) != self._parity[rows]
            if damaged.any():
                row = np.arange(len(self))[rows][damaged][0]
                raise explain_damage(self.path, f"is damaged at row {row}")
            self._verified[rows] = True
        return values


def compute_parity(values: np.ndarray) -> np.ndarray:
    """Return the exclusive or of each row's 32-bit words: (N, D) float32 -> (N,) uint32."""
    return np.bitwise_xor.reduce(values.view(np.uint32), axis=1)


def append_vectors(folder: Path, generation: int, rows: int, values: np.ndarray) -> None:
    """Write ``values`` (n, D) float32 after the first ``rows`` rows and flush them to the disk.

    This overwrites rows that an interrupted writer left; no reader looks at those.
    """
    contents = (values, compute_parity(values))
    for path, content in zip(vector_paths(folder, generation), contents, strict=True):
        offset = rows * content.itemsize * int(np.prod(content.shape[1:]))
        if not offset:
            with atomic_write(path):
                pass  # flushes the file's name, before the database refers to it
        with explain_write_errors(path), open(path, "r+b") as stream:
            _check_size(path, offset)
            stream.seek(offset)
            stream.truncate()
            stream.write(np.ascontiguousarray(content).tobytes())
            stream.flush()
            os.fsync(stream.fileno())


def vector_paths(folder: Path, generation: int) -> tuple[Path, Path]:
    """Return the paths of a generation's vectors and parity words."""
    return folder / f"vectors-{generation}.f32", folder / f"parity-{generation}.u32"


def _map_file(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    if not shape[0]:
        return np.empty(shape, dtype)
    _check_size(path, int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)
    # a plain array: slices of a memmap are slow
    return np.asarray(np.memmap(path, dtype, mode="r", shape=shape))


def _check_size(path: Path, expected: int) -> None:
    if (size := path.stat().st_size) < expected:
        raise explain_damage(path, f"is {size} bytes long instead of at least {expected}")
