"""Text files that name the images of a data set, one in a line."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from occluded_reid.utils.errors import UserError


def read_list(path: Path) -> list[str]:
    """Return the lines of ``path`` without blank ones, with ``/`` between folders.

    Raises:
        UserError: no such file, or no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the list {path} ({error}); it is one name in a line"
        ) from error
    lines = (line.strip().replace("\\", "/") for line in text.splitlines())
    return [line for line in lines if line]


def inside(name: str, source: Path) -> str:
    """Return ``name``, a path that a list or an archive gives, if it stays in its folder.

    Raises:
        UserError: it is absolute or climbs out by ``..``; ``source`` is the file that says so.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or ":" in name:
        raise UserError(
            f"{source} names {name!r}, which lies outside its own folder; get another copy"
        )
    return str(path)
