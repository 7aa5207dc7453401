"""Folders that are made once, whole or not at all, however many processes ask for them."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from occluded_reid.errors import UserError
from occluded_reid.files import make_folder, write_errors_named

logger = logging.getLogger(__name__)


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
