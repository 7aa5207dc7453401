"""Vectors on disk: a float32 file that only grows, mapped into memory, with a parity word per row.

Shapes: N rows, D feature dimensions.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write, explain_write_errors

Rows = slice | np.ndarray


class Vectors:
    """The first N rows of a generation, (N, D) float32; a view that never changes.

    The gallery may be larger than memory. Each row is compared with its parity word when it is read
    for the first time.

    Args:
        folder: The index.
        generation: Number of the files; compaction starts a new one.
        rows: N, from the database; the files may be longer.
        dim: D.
        verified: Rows of the same generation that an earlier view has checked.

    Raises:
        FileNotFoundError: Compaction has replaced this generation.
        UserError: A file is shorter than it should be.
    """

    def __init__(
        self, folder: Path, generation: int, rows: int, dim: int, verified: np.ndarray | None = None
    ):
        self.generation = generation
        self.path, parity = _paths(folder, generation)
        self._values = _map_file(self.path, (rows, dim), np.float32)
        self._parity = _map_file(parity, (rows,), np.uint32)
        self.verified = np.zeros(rows, bool)
        if verified is not None:
            known = min(rows, len(verified))
            self.verified[:known] = verified[:known]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: Rows) -> np.ndarray:
        """Return (n, D) rows: a slice as a view of the file, an index array as a copy.

        Raises:
            UserError: A row is damaged.
        """
        values = self._values[rows]
        if not self.verified[rows].all():
            damaged = compute_parity(values) != self._parity[rows]
            if damaged.any():
                row = np.arange(len(self))[rows][damaged][0]
                raise UserError(
                    f"{self.path} is damaged at row {row}; build the index anew, or restore the "
                    "folder from a copy"
                )
            self.verified[rows] = True
        return values


def compute_parity(values: np.ndarray) -> np.ndarray:
    """Return the exclusive or of each row's 32-bit words: (N, D) float32 -> (N,) uint32."""
    return np.bitwise_xor.reduce(values.view(np.uint32), axis=1)


def append_vectors(folder: Path, generation: int, rows: int, values: np.ndarray) -> None:
    """Write ``values`` (n, D) float32 after the first ``rows`` rows and flush them to the disk.

    This overwrites rows that an interrupted writer left; no reader looks at those.

    Raises:
        UserError: No space, no permission, or files shorter than ``rows`` rows.
    """
    contents = (values, compute_parity(values))
    for path, content in zip(_paths(folder, generation), contents, strict=True):
        offset = rows * content.itemsize * int(np.prod(content.shape[1:]))
        if not offset:
            with atomic_write(path):
                pass  # flushes the file's name, before the database refers to it
        with explain_write_errors(path), open(path, "r+b") as stream:
            if os.fstat(stream.fileno()).st_size < offset:
                raise _truncated(path, offset)
            stream.seek(offset)
            stream.truncate()
            stream.write(np.ascontiguousarray(content).tobytes())
            stream.flush()
            os.fsync(stream.fileno())


def delete_other_generations(folder: Path, generation: int) -> None:
    """Delete the vectors that compaction replaced; open views stay valid."""
    kept = _paths(folder, generation)
    for path in (*folder.glob("vectors-*.f32"), *folder.glob("parity-*.u32")):
        if path not in kept:
            path.unlink(missing_ok=True)


def _paths(folder: Path, generation: int) -> tuple[Path, Path]:
    return folder / f"vectors-{generation}.f32", folder / f"parity-{generation}.u32"


def _map_file(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    if not shape[0]:
        return np.empty(shape, dtype)
    expected = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    if path.stat().st_size < expected:
        raise _truncated(path, expected)
    # a plain array: slices of a memmap are slow
    return np.asarray(np.memmap(path, dtype, mode="r", shape=shape))


def _truncated(path: Path, expected: int) -> UserError:
    size = path.stat().st_size
    return UserError(
        f"{path} is damaged: it is {size} bytes long instead of at least {expected}; "
        "build the index anew, or restore the folder from a copy"
    )
