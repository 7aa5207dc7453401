"""Finds an unpacked archive whose folders are in another case or one level too deep."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from occluded_reid.utils.errors import explain_read_errors

_SYSTEM_FOLDERS = frozenset({"__macosx", "$recycle.bin", "system volume information"})


def list_names(folder: Path) -> list[str]:
    """Return the sorted names of all files and folders in ``folder``."""
    with explain_read_errors(folder, "check that it is a readable folder"):
        return sorted(os.listdir(folder))


def list_folders(folder: Path) -> list[Path]:
    """Return the sorted folders in ``folder``, without hidden ones and those of the system."""
    names = [name for name in list_names(folder) if not name.startswith(".")]
    visible = [folder / name for name in names if name.lower() not in _SYSTEM_FOLDERS]
    with explain_read_errors(folder, "check that it is a readable folder"):
        return [path for path in visible if path.is_dir()]


def resolve_case(parent: Path, relative: str) -> Path:
    """Return ``parent / relative`` in the spelling of the disk.

    A part that does not exist is replaced by the first name that differs in case only.
    """
    resolved = parent
    for part in Path(relative).parts:
        exact = resolved / part
        if not os.path.exists(exact) and os.path.isdir(resolved):
            matches = (name for name in list_names(resolved) if name.lower() == part.lower())
            exact = resolved / next(matches, part)
        resolved = exact
    return resolved


def list_candidates(root: Path, layouts: Iterable[str]) -> Iterator[Path]:
    """Yield the folders that may hold a data set, the most likely one first.

    They are the ``layouts`` below ``root``, the folder of all data sets, and ``root`` itself if its
    name is that of a layout or a layout is ``""``.
    """
    layouts = list(layouts)
    homes = [resolve_case(root, layout) for layout in layouts]
    if root.name.lower() in {Path(layout).name.lower() for layout in layouts if layout}:
        homes.append(root)
    for home in homes:
        yield home
        if home != root or "" not in layouts:
            # the archive may have been unpacked into a folder of its own
            nested = list_folders(home) if home.is_dir() else []
            one = len(nested) == 1
            yield from (each for each in nested if one or each.name.lower() == home.name.lower())
