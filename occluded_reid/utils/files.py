"""Files and folders that are written whole or not at all, however many processes ask for them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

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


def _missing(folder: Path) -> str:
    return "" if folder.is_dir() else "it is no folder"


def make_once(
    folder: str | os.PathLike[str],
    fill: Callable[[Path], None],
    fault_of: Callable[[Path], str] = _missing,
) -> Path:
    """Return ``folder``; where it is not there, one process makes it and the others wait.

    Args:
        folder: its final name.
        fill: writes the content into the empty folder that it is given.
        fault_of: why the folder cannot be taken as it is, ``""`` where it can. One that is there
            should be whole, for it takes its name last; else it is made anew, with a warning.

    Raises:
        UserError: a place that cannot be written or has no locks; whatever ``fill`` raises.
    """
    folder = Path(folder)
    if not fault_of(folder):
        return folder
    make_folder(folder.parent)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if fault := fault_of(folder):
            if folder.exists():
                logger.warning(f"{folder} is made anew: {fault}")
            of_killed_processes = folder.parent.glob(f".{folder.name}.tmp-*")
            for leftover in (folder, *of_killed_processes):
                shutil.rmtree(leftover, ignore_errors=True)
            with whole_folder(folder) as temporary:
                fill(temporary)
    return folder


@contextlib.contextmanager
def whole_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder that takes the name ``folder`` once the block ends without an error.

    Args:
        folder: the final name; nothing, or an empty folder, may stand there.

    Raises:
        UserError: the folder holds files already, or cannot be written.
    """
    folder = Path(folder)
    make_folder(folder.parent)
    with write_errors_named(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists already; delete it or choose another folder")
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
    try:
        yield temporary
        with write_errors_named(folder):
            temporary.chmod(0o755)
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the file stays, for removing it would be a race."""
    with write_errors_named(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(f"another process makes {path.name[1:-5]}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"{path.parent} lies on a file system without locks; choose another folder"
            ) from error
        yield
    finally:
        os.close(handle)
