"""The folder of a run: whose it is, what a start may do with it, and the lock on it.

A training may start in a folder without a run, or resume the run that the folder holds. Everything
else is refused before anything is written: :func:`claim` is the first that changes the folder.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastreid.config import CfgNode

from occluded_reid.checkpoint.conversion import join_first
from occluded_reid.checkpoint.reading import load_safely
from occluded_reid.checkpoint.resolve import check_run_id, read_last_checkpoint, read_run_id
from occluded_reid.modeling.keys import dump_config
from occluded_reid.utils.distributed import run_on_first_rank
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import (
    atomic_write,
    explain_write_errors,
    hold_lock,
    make_folder,
    remove_unfinished,
)
from occluded_reid.utils.logs import setup_logging

logger = logging.getLogger(__name__)

LOCK = ".lock"
WITHOUT_WEIGHTS = (
    "log.txt*", "config.yaml", "events.out.tfevents*", "metrics.json", "*.png", LOCK,
    ".*.unfinished",
)  # fmt: skip
"""What a run leaves that ended before its first checkpoint; log.txt goes on, and holds the rest."""


class Checkpoint(NamedTuple):
    """A checkpoint that a run can go on from, and what it says of itself.

    ``epoch`` is the last finished one, ``steps`` the iterations done since; ``evaluated`` is False
    if the evaluation after that epoch failed. ``config`` (YAML) and ``data`` (a digest) are what it
    was trained with, by so many ``processes``; ``""`` and 0 in files of earlier versions. ``stamp``
    tells whether the folder has changed since.
    """

    path: str
    epoch: int
    steps: int
    evaluated: bool
    config: str
    data: str
    processes: int
    stamp: list[tuple[str, int]]


def choose_run_id(path: str, *, resume: bool) -> str:
    """Return the id of the run that ``--resume`` continues in the folder ``path``, or a new one.

    A run that was begun before there were ids goes on without one.
    """
    folder = Path(path)
    known = read_run_id(folder) if resume else None
    if known or (known is not None and any(folder.rglob("*.pth"))):
        return known
    return f"r{secrets.token_hex(8)}"  # a letter first: YAML reads some digits as a number


def check_start(path: str, *, overwrite: bool = False) -> None:
    """Raise a UserError unless a new run may start in the folder ``path``.

    With ``overwrite`` the folder may hold a run, which :func:`claim` moves aside.
    """
    folder = Path(path)
    _check_lock(folder)
    names = _list_names(folder)
    kept = [name for name in names if not _is_spare(folder / name)]
    if not kept:
        return
    holds_run = any(name == "config.yaml" or name.endswith(".pth") for name in names)
    if not holds_run:
        raise UserError(
            f"{folder} holds files that are no run's ({join_first(kept)}); set another OUTPUT_DIR"
        )
    if not overwrite:
        raise UserError(
            f"{folder} already holds a run ({join_first(kept)}): --resume continues it if it has "
            "checkpoints, another OUTPUT_DIR keeps both, --overwrite moves it aside and starts a "
            "new one"
        )
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(
            f"--overwrite would move {folder}, in which this command runs, aside: start it from "
            "another folder"
        )


def find_checkpoint(path: str, *, trust: bool = False) -> Checkpoint | None:
    """Find what ``--resume`` continues: the file that last_checkpoint names, if it is sound.

    Else it is the most advanced checkpoint of the same run, with a warning. None if the folder
    holds no weights at all: then the run starts from the beginning.

    Raises:
        UserError: there are weights, but none that the run can go on from.
    """
    folder = Path(path)
    _check_lock(folder)
    if not any(folder.rglob("*.pth")):
        if not read_run_id(folder):  # what an evaluation left, or weights of another form
            check_start(path)
        return None
    if read_run_id(folder) is None:
        raise UserError(
            f"{folder} holds weights but no config.yaml, which tells what run they are of: copy "
            "it there, or start a new run from the weights (MODEL.WEIGHTS)"
        )
    found, faults = [], []
    try:
        last = read_last_checkpoint(folder)
        if not last:
            raise UserError(f"there is no {folder / 'last_checkpoint'}")
        return _read_checkpoint(folder / last, trust)
    except UserError as error:
        faults.append(str(error))
    for file in folder.glob("*.pth"):
        try:
            found.append(_read_checkpoint(file, trust))
        except UserError as error:
            faults.append(str(error))
    if not found:
        raise UserError(
            f"{folder} holds weights, but none that --resume can continue: "
            f"{join_first(list(dict.fromkeys(faults)))}"
        )
    chosen = max(found, key=lambda each: (each.epoch, each.steps, each.evaluated))
    logger.warning(f"{faults[0]}; resuming from the newest readable checkpoint, {chosen.path}")
    return chosen


@contextlib.contextmanager
def claim(cfg: CfgNode, resumed: Checkpoint | None, *, overwrite: bool = False) -> Iterator[None]:
    """Make ``OUTPUT_DIR`` this run's, open its log, and hold its lock inside the block.

    Called once everything else has been checked. With ``overwrite`` a run that stands there is
    moved aside. A UserError is raised if another process has come first.
    """
    folder = Path(cfg.OUTPUT_DIR)
    with contextlib.ExitStack() as stack:
        run_on_first_rank(lambda: _enter(stack, folder, cfg.RUN_ID, resumed, overwrite))
        open_log(folder)
        yield


def open_log(folder: Path) -> None:
    """Open log.txt in ``folder``, which is created if need be."""
    make_folder(folder)
    if odd := [path for path in folder.glob("log.txt*") if path.exists() and not path.is_file()]:
        raise UserError(f"{odd[0]} is not a regular file; remove it, or set another OUTPUT_DIR")
    with explain_write_errors(folder / "log.txt"):
        setup_logging(str(folder))


def write_config(cfg: CfgNode) -> None:
    """Write config.yaml into ``OUTPUT_DIR``, without the keys that the model does not read."""
    with atomic_write(Path(cfg.OUTPUT_DIR, "config.yaml"), "w") as stream:
        stream.write(dump_config(cfg))


def _enter(
    stack: contextlib.ExitStack, folder: Path, run_id: str, resumed: Checkpoint | None,
    overwrite: bool,
) -> None:  # fmt: skip
    if overwrite and any(not _is_spare(folder / name) for name in _list_names(folder)):
        _move_aside(folder)
    make_folder(folder.resolve())  # the target of a link may be missing
    stack.enter_context(_hold_lock(folder))
    if resumed is not None:
        is_as_read = _stamp(folder) == resumed.stamp
    else:  # a new run, or one that is begun again under its id
        is_as_read = not any(folder.glob("*.pth")) and (
            read_run_id(folder) == run_id or all(map(_is_spare, folder.iterdir()))
        )
    if not is_as_read:
        raise UserError(f"another process has written into {folder} since this start; start again")
    remove_unfinished(folder)


def _move_aside(folder: Path) -> None:
    """Rename the folder of a run, locked so that nobody writes into it, to a free name."""
    check_start(str(folder), overwrite=True)
    real = folder.resolve()  # a link to it goes on to hold
    names = (real.with_name(f"{real.name}.{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    with _lock(folder), explain_write_errors(aside):
        real.rename(aside)
    (aside / LOCK).unlink(missing_ok=True)
    logger.warning(f"--overwrite: moved the run in {folder} to {aside}")


@contextlib.contextmanager
def _hold_lock(folder: Path) -> Iterator[None]:
    with _lock(folder):
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    busy = f"another training is writing into {folder}; wait for it, or set another OUTPUT_DIR"
    return hold_lock(folder / LOCK, busy)


def _check_lock(folder: Path) -> None:
    if (folder / LOCK).exists():
        with _lock(folder):
            pass


def _list_names(folder: Path) -> list[str]:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write {folder}: it is a file; choose another OUTPUT_DIR")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def _is_spare(path: Path) -> bool:
    """Whether another start may go over this file."""
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in WITHOUT_WEIGHTS)


def _stamp(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.lstat().st_mtime_ns) for path in folder.glob("*.pth"))


def _read_checkpoint(path: Path, trust: bool) -> Checkpoint:
    """Read a checkpoint of the run in its folder; else raise a UserError."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path} (last_checkpoint names it)")
    stamp, content = _stamp(path.parent), load_safely(str(path), trust=trust)
    if not (isinstance(content, dict) and isinstance(content.get("epoch"), int)):
        raise UserError(
            f"{path} holds only weights and cannot be resumed; start a new run from it with "
            "MODEL.WEIGHTS"
        )
    check_run_id(path, content)
    run, begun = (content.get(key) for key in ("run", "begun"))
    run, begun = (each if isinstance(each, dict) else {} for each in (run, begun))
    steps, processes = begun.get("steps"), run.get("processes")  # of any kind, in anybody's file
    return Checkpoint(
        str(path), content["epoch"], steps if isinstance(steps, int) else 0,
        content.get("evaluated") is not False, str(run.get("config", "")), str(run.get("data", "")),
        processes if isinstance(processes, int) else 0, stamp,
    )  # fmt: skip
