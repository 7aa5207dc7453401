"""Vectors on the disk: a file that only grows, mapped into memory, checked as it is read.

Shapes: N rows, D feature dimensions.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import whole_file, write_errors_named

Rows = slice | np.ndarray  # numbers of rows, in one piece or picked


class Vectors:
    """The first N rows of a generation, (N, D) float32; a reader's view that never changes.

    Nothing is read before it is asked for, so that a gallery may be larger than the memory. The
    32-bit words of each row have a parity word in a second file; a row is compared with it the
    first time that it is read.

    Args:
        folder: the index.
        generation: which files; compaction begins a new one.
        rows: N, as the database says; the files may be longer.
        dim: D.
        verified: rows of the same generation that an earlier view has compared already.

    Raises:
        FileNotFoundError: this generation is not there any more.
        UserError: a file is shorter than it should be.
    """

    def __init__(
        self,
        folder: Path,
        generation: int,
        rows: int,
        dim: int,
        verified: np.ndarray | None = None,
    ):
        self.generation, self.dim = generation, dim
        self.path, parity = _files(folder, generation)
        self._values = _mapped(self.path, (rows, dim), np.float32)
        self._parity = _mapped(parity, (rows,), np.uint32)
        self.verified = np.zeros(rows, bool)
        if verified is not None:
            known = min(rows, len(verified))
            self.verified[:known] = verified[:known]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: Rows) -> np.ndarray:
        """Return (n, D) rows: a slice as a view of the file, picked ones as a copy.

        Raises:
            UserError: a row is not what was written.
        """
        found = self._values[rows]
        if not self.verified[rows].all():
            wrong = parity_words(found) != self._parity[rows]
            if wrong.any():
                row = np.arange(len(self))[rows][wrong][0]
                raise UserError(
                    f"{self.path} is damaged at row {row}: its vector is not the one that was "
                    "written; build the index anew, or restore the folder from a copy"
                )
            self.verified[rows] = True
        return found


def parity_words(values: np.ndarray) -> np.ndarray:
    """Return the exclusive or of each row's 32-bit words, (N, D) float32 -> (N,) uint32."""
    return np.bitwise_xor.reduce(values.view(np.uint32), axis=1)


def append_vectors(folder: Path, generation: int, rows: int, values: np.ndarray) -> None:
    """Write ``values`` behind the first ``rows`` rows and wait until they are on the disk.

    What an interrupted writer has left behind those rows is overwritten; no reader looks at it.

    Args:
        values: (n, D) float32.

    Raises:
        UserError: no space, no permission; or the files are shorter than ``rows`` rows.
    """
    for path, content in zip(
        _files(folder, generation), (values, parity_words(values)), strict=True
    ):
        place = rows * content.itemsize * int(np.prod(content.shape[1:]))
        if not place:
            with whole_file(path):
                pass  # its name is on the disk before anything counts on it
        with write_errors_named(path), open(path, "r+b") as stream:
            if os.fstat(stream.fileno()).st_size < place:
                raise _shorter(path, place)
            stream.seek(place)
            stream.truncate()
            stream.write(np.ascontiguousarray(content).tobytes())
            stream.flush()
            os.fsync(stream.fileno())


def delete_other_generations(folder: Path, generation: int) -> None:
    """Delete the vectors that compaction has made superfluous; open views keep what they see."""
    kept = _files(folder, generation)
    for path in (*folder.glob("vectors-*.f32"), *folder.glob("parity-*.u32")):
        if path not in kept:
            path.unlink(missing_ok=True)


def _files(folder: Path, generation: int) -> tuple[Path, Path]:
    return folder / f"vectors-{generation}.f32", folder / f"parity-{generation}.u32"


def _mapped(path: Path, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    if not shape[0]:
        return np.empty(shape, kind)
    needed = int(np.prod(shape, dtype=object)) * np.dtype(kind).itemsize
    if path.stat().st_size < needed:
        raise _shorter(path, needed)
    # a plain array: the subclass memmap costs time with every slice
    return np.asarray(np.memmap(path, kind, mode="r", shape=shape))


def _shorter(path: Path, needed: int) -> UserError:
    return UserError(
        f"{path} is damaged: it is {path.stat().st_size} bytes long instead of at least {needed}; "
        "build the index anew, or restore the folder from a copy"
    )
