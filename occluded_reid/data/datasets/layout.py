"""Where an unpacked archive may stand: written in another case, or one folder too deep."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from occluded_reid.utils.errors import UserError

_BESIDE_THE_DATA = frozenset({"__macosx", "$recycle.bin", "system volume information"})


def names_in(folder: Path) -> list[str]:
    """Return the sorted names of what stands in ``folder``.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"cannot list {folder} ({error.strerror}); check that it is a folder that you may read"
        ) from error


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder``, sorted; not hidden ones, nor what systems leave behind."""
    return [
        folder / name
        for name in names_in(folder)
        if not name.startswith(".")
        and name.lower() not in _BESIDE_THE_DATA
        and (folder / name).is_dir()
    ]


def as_spelled(parent: Path, relative: str) -> Path:
    """Return ``parent / relative`` as the disk spells it.

    Where a part does not exist, the first one that differs in case alone takes its place.
    """
    place = parent
    for part in Path(relative).parts:
        exact = place / part
        if not exact.exists() and place.is_dir():
            alike = (name for name in names_in(place) if name.lower() == part.lower())
            exact = place / next(alike, part)
        place = exact
    return place


def candidate_homes(root: Path, layouts: Iterable[str]) -> Iterator[Path]:
    """Yield the folders below ``root`` in which a data set may stand, the likeliest first.

    Args:
        root: the folder of all data sets, or the data set's own folder if it has a layout's name.
        layouts: folders below ``root``; ``""`` is ``root`` itself.
    """
    layouts = list(layouts)
    homes = [as_spelled(root, layout) for layout in layouts]
    if root.name.lower() in {Path(layout).name.lower() for layout in layouts if layout}:
        homes.append(root)
    for home in homes:
        yield home
        if home != root or "" not in layouts:
            yield from _one_deeper(home)


def _one_deeper(home: Path) -> list[Path]:
    """The folder in ``home`` that the archive may have been unpacked into once more."""
    inside = visible_folders(home) if home.is_dir() else []
    if len(inside) == 1:
        return inside
    return [folder for folder in inside if folder.name.lower() == home.name.lower()]
