"""Vectors on disk: one float32 file that only grows, mapped into memory.

Shapes: N rows, D feature dimensions.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write, explain_write_errors

Rows = slice | np.ndarray


def open_vectors(folder: Path, generation: int, rows: int, dim: int) -> np.ndarray:
    """Map the first ``rows`` rows of a generation, (N, D) float32; a view that never changes.

    The gallery may be larger than memory. The file may be longer than the database says.

    Raises:
        FileNotFoundError: Compaction has replaced this generation.
        UserError: The file is shorter than it should be.
    """
    if not rows:
        return np.empty((0, dim), np.float32)
    path = vectors_path(folder, generation)
    expected = 4 * rows * dim
    if path.stat().st_size < expected:
        raise _truncated(path, expected)
    # a plain array: slices of a memmap are slow
    return np.asarray(np.memmap(path, np.float32, mode="r", shape=(rows, dim)))


def append_vectors(folder: Path, generation: int, rows: int, values: np.ndarray) -> None:
    """Write ``values`` (n, D) float32 after the first ``rows`` rows and flush them to the disk.

    This overwrites rows that an interrupted writer left; no reader looks at those.

    Raises:
        UserError: No space, no permission, or a file shorter than ``rows`` rows.
    """
    path = vectors_path(folder, generation)
    offset = rows * values.shape[1] * values.itemsize
    if not offset:
        with atomic_write(path):
            pass  # flushes the file's name, before the database refers to it
    with explain_write_errors(path), open(path, "r+b") as stream:
        if os.fstat(stream.fileno()).st_size < offset:
            raise _truncated(path, offset)
        stream.seek(offset)
        stream.truncate()
        stream.write(np.ascontiguousarray(values, np.float32).tobytes())
        stream.flush()
        os.fsync(stream.fileno())


def delete_other_generations(folder: Path, generation: int) -> None:
    """Delete the vectors that compaction replaced; open views stay valid."""
    for path in (*folder.glob("vectors-*.f32"), *folder.glob("parity-*.u32")):  # once written too
        if path != vectors_path(folder, generation):
            path.unlink(missing_ok=True)


def vectors_path(folder: Path, generation: int) -> Path:
    """Return the path of a generation's file."""
    return folder / f"vectors-{generation}.f32"


def _truncated(path: Path, expected: int) -> UserError:
    size = path.stat().st_size
    return UserError(
        f"{path} is damaged: it is {size} bytes long instead of at least {expected}; "
        "build the index anew, or restore the folder from a copy"
    )
