"""Files and folders that are written completely or not at all, also by several processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

from occluded_reid.utils.errors import UserError
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EFBIG: "the file is larger than allowed (ulimit -f); choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
    errno.EEXIST: "a file is where a folder is needed; choose another folder",
}
_UNFINISHED = ".unfinished"


@contextlib.contextmanager
def explain_write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's refusal to write ``path`` into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, f"{error.strerror or error}; choose another name")
        raise UserError(f"cannot write {show(path)}: {advice}") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents unless they exist."""
    folder = Path(path)
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file that is renamed to ``path`` once it is complete.

    The content is flushed to the disk before the rename: after a crash at any moment ``path`` holds
    either its old content or all of the new. The folder must exist; ``mode`` is ``"wb"``, or
    ``"w"`` for UTF-8. A failure to write raises a UserError.

    >>> with atomic_write("notes.txt", "w") as stream:  # doctest: +SKIP
    ...     stream.write("complete")
    """
    final = Path(path)
    with explain_write_errors(final):
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
    with contextlib.suppress(OSError):  # makes the rename itself durable, where that is supported
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading in binary form, as ``open`` does, but only a regular one.

    A named pipe or a device raises an OSError at once: reading one could wait, or go on, forever.
    A link is followed. See :func:`~occluded_reid.utils.errors.explain_read_errors`.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file, but a folder, pipe or device", os.fspath(path))
    return os.fdopen(handle, "rb")


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes; anything else raises an OSError at once.

    >>> read_regular("images.csv", 2**26).decode()  # doctest: +SKIP
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            told = f"it has {size} bytes; at most {limit} are read"
            raise OSError(errno.EFBIG, told, os.fspath(path))
        return stream.read(size)


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: str | os.PathLike[str], *, limit: int = 2**26) -> Any:
    """Read a JSON file of at most ``limit`` bytes; an OSError or a ValueError if that fails."""
    return _parse_json(read_regular(path, limit))


def read_json_lines(path: str | os.PathLike[str], *, limit: int = 2**30) -> list[tuple[str, Any]]:
    """Read a file of JSON lines, such as metrics.json: each line and its content.

    The content is None if the line is damaged. An OSError is raised if the file cannot be read.
    """
    lines = []
    for line in read_regular(path, limit).splitlines():
        try:
            content = _parse_json(line)
        except ValueError:
            content = None
        lines.append((line.decode("utf-8", "replace"), content))
    return lines


def _parse_json(content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_json(
    path: str | os.PathLike[str], content: Mapping[str, Any], *,
    sort_keys: bool = False, allow_nan: bool = True,
) -> None:  # fmt: skip
    """Write ``content`` as indented JSON, atomically; create the folder if it is missing.

    Raises a ValueError if a number is not finite, without ``allow_nan``.
    """
    make_folder(Path(path).parent)
    with atomic_write(path, "w") as stream:
        json.dump(content, stream, indent=2, sort_keys=sort_keys, allow_nan=allow_nan)
        stream.write("\n")


def remove_unfinished(folder: Path) -> None:
    """Remove what :func:`atomic_write` left when it was killed; nobody else may be writing."""
    for path in folder.glob(".*" + _UNFINISHED):
        path.unlink(missing_ok=True)


def diagnose_zip(file: str | os.PathLike[str] | IO[bytes], *, limit: float = math.inf) -> str:
    """Return what is wrong with a zip file, such as PyTorch's; ``""`` if it is sound.

    Every part of it has a CRC-32, which PyTorch writes but does not check. Unpacked, the parts may
    have ``limit`` bytes together.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(part.file_size for part in archive.infolist())
            if size > limit:
                return f"{size} bytes are packed into it, at most {limit} are read"
            part = archive.testzip()
    except Exception as error:  # invalid bytes make zipfile raise almost anything
        return f"{type(error).__name__}: {error}"
    return f"{part} differs from its checksum" if part else ""


def make_folder_once(
    folder: str | os.PathLike[str],
    fill: Callable[[Path], None],
    diagnose: Callable[[Path], str] = lambda path: "" if path.is_dir() else "it is not a folder",
) -> Path:
    """Return ``folder``; if it is missing, one process creates it while the others wait.

    ``fill`` writes the content into an empty folder. ``diagnose`` returns why an existing folder
    cannot be used, ``""`` if it can: such a folder is replaced, with a warning.
    """
    folder = Path(folder)
    if not diagnose(folder):
        return folder
    make_folder(folder.parent)
    file = folder.with_name(f".{folder.name}.lock")
    with hold_lock(file, f"another process makes {folder.name}", wait=True):
        if fault := diagnose(folder):
            if folder.exists():
                logger.warning(f"{folder} is made anew: {fault}")
            for leftover in (folder, *folder.parent.glob(f".{folder.name}.tmp-*")):
                shutil.rmtree(leftover, ignore_errors=True)
            with atomic_folder(folder) as temporary:
                fill(temporary)
    return folder


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder that is renamed to ``folder`` if the block ends without an error.

    ``folder`` may not exist yet, or be an empty folder; anything else is a UserError.
    """
    folder = Path(folder)
    make_folder(folder.parent)
    with explain_write_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists already; delete it or choose another folder")
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
    try:
        yield temporary
        with explain_write_errors(folder):
            temporary.chmod(0o755)
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def hold_lock(file: Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock between processes; it ends with this one, however that ends.

    If another process holds it, ``busy`` is the text of a UserError; or ``wait`` for it, in any
    user's process.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file, mode=0o666 if wait else 0o644)
    with explain_write_errors(file):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if not wait:
                raise UserError(busy) from error
            logger.info(f"{busy}; waiting for it")
            lock.acquire()
        except NotImplementedError as error:
            raise UserError(
                f"{file.parent} is on a file system without locks; choose another folder"
            ) from error
    try:
        yield
    finally:
        lock.release()
