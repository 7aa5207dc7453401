"""Text files that list the images of a data set, one per line."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from occluded_reid.utils.errors import UserError, explain_read_errors


def read_list(path: Path) -> list[str]:
    """Return the lines of ``path`` without blank ones, with ``/`` as separator."""
    with explain_read_errors(f"the list {path}", "expected one name per line"):
        text = path.read_text(encoding="utf-8-sig")
    lines = (line.strip().replace("\\", "/") for line in text.splitlines())
    return [line for line in lines if line]


def check_inside(name: str, source: Path) -> str:
    """Return ``name``, a path in the list or archive ``source``, if it stays inside its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or ":" in name:
        raise UserError(
            f"{source} names {name!r}, which lies outside its own folder; get another copy"
        )
    return str(path)
