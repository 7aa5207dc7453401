"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from occluded_reid.errors import UserError

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EFBIG: "larger than a file may be there (ulimit -f); choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
    errno.EEXIST: "a file stands where a folder is needed; choose another folder",
}


_UNFINISHED = ".unfinished"


@contextlib.contextmanager
def write_errors_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's refusal to write ``path`` into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, f"{error.strerror or error}; choose another name")
        raise UserError(f"cannot write {path}: {advice}") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create ``path`` and its parents unless they exist.

    Raises:
        UserError: the folder cannot be made.
    """
    folder = Path(path)
    with write_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file that takes the name ``path`` only once it is complete.

    The content is flushed to the disk before the rename, so that after a crash at any moment
    ``path`` holds either its old content or the whole new one.

    Args:
        path: the final name; its folder must exist.
        mode: ``"wb"`` or ``"w"`` (UTF-8).

    Raises:
        UserError: no space, no permission, or a read-only file system.
    """
    final = Path(path)
    with write_errors_named(final):
        handle, temporary = tempfile.mkstemp(
            prefix=f".{final.name}.", suffix=_UNFINISHED, dir=final.parent
        )
        try:
            encoding = None if "b" in mode else "utf-8"
            with os.fdopen(handle, mode, encoding=encoding) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, final)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    _sync_folder(final.parent)


def write_json(
    path: str | os.PathLike[str],
    content: Mapping[str, Any],
    *,
    sort_keys: bool = False,
    allow_nan: bool = True,
) -> None:
    """Write ``content`` for machines and people, whole; the folder is made where it is missing.

    Raises:
        UserError: as :func:`make_folder` and :func:`whole_file`.
        ValueError: a number that is not finite, without ``allow_nan``.
    """
    make_folder(Path(path).parent)
    with whole_file(path, "w") as stream:
        json.dump(content, stream, indent=2, sort_keys=sort_keys, allow_nan=allow_nan)
        stream.write("\n")


def remove_unfinished(folder: Path) -> None:
    """Remove what :func:`whole_file` left in ``folder`` when its process was killed.

    Nobody else may be writing there.
    """
    for path in folder.glob(".*" + _UNFINISHED):
        path.unlink(missing_ok=True)


def zip_fault(path: str | os.PathLike[str]) -> str:
    """Say what is wrong with a zip file, such as PyTorch's; ``""`` where nothing is.

    Every part of it carries a CRC-32, which PyTorch writes but does not look at.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except Exception as error:  # zipfile has no end of them for bytes that make no sense
        return f"{type(error).__name__}: {error}"
    return f"{part} differs from its checksum" if part else ""


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the file system knows how."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
