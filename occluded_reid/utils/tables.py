"""Lists and tables as users write them: one reader for all commands."""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import re
from pathlib import Path
from typing import NamedTuple

from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import read_regular

MAX_BYTES = 2**30
DELIMITERS = ",;\t"


class Row(NamedTuple):
    """A row of a table."""

    line: int  # number in the file, from 1
    cells: dict[str, str]  # text by column, stripped; "" where the row is too short


class Table(NamedTuple):
    """A CSV file, without blank rows; the names of its columns are stripped."""

    path: Path
    columns: list[str]
    rows: list[Row]

    def require(self, *columns: str) -> None:
        """Raise a UserError unless the table has rows with these columns."""
        if not self.rows or not set(columns) <= set(self.columns):
            raise UserError(
                f"{self.path} has the columns {', '.join(self.columns) or '(none)'} and "
                f"{len(self.rows)} rows; it needs rows with {', '.join(columns)}, between commas, "
                "semicolons or tabs"
            )


def read_csv(path: str | os.PathLike[str], thing: str, advice: str) -> Table:
    """Read a CSV file; whichever of comma, semicolon and tab its first line has most separates.

    ``thing`` and ``advice`` are for the error: what the file is, and what to do.
    """
    path = Path(path)
    with explain_read_errors(thing, advice):
        text = _decode(path, "strict")
        first = next(filter(str.strip, text.splitlines()), "")
        delimiter = max(DELIMITERS, key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
        filled = ((line, cells) for line, cells in lines if any(cells))
        _, columns = next(filled, (0, []))
        if repeated := {name for name in columns if name and columns.count(name) > 1}:
            raise UserError(f"{path} names the column {min(repeated)} more than once")
        rows = []
        for line, cells in filled:
            if any(cells[len(columns) :]):
                raise UserError(f"{path}, line {line}: there are more cells than columns")
            cells += [""] * (len(columns) - len(cells))
            rows.append(Row(line, dict(zip(columns, cells, strict=False))))
    return Table(path, columns, rows)


def read_list(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a text file, stripped, without blank ones, with ``/`` as separator.

    Names may be in any encoding, as on the disk; see :func:`os.fsdecode`.
    """
    with explain_read_errors(f"the list {path}", "expected a text file with one name per line"):
        text = _decode(Path(path), "surrogateescape")
    lines = re.split(r"[\r\n]+", text.replace("\\", "/"))  # names may hold other line separators
    return [line.strip() for line in lines if line.strip()]


def clean_path(name: str, folder: str | os.PathLike[str] = "") -> str:
    """Return a path in the one spelling by which paths are compared.

    An absolute path becomes relative to ``folder`` if it lies there.

    >>> clean_path("b\\\\..\\\\./a.jpg")
    'a.jpg'
    """
    path = posixpath.normpath(name.replace("\\", "/"))
    return path.removeprefix(f"{os.path.abspath(folder)}/") if path.startswith("/") else path


def is_outside(path: str) -> bool:
    """Whether a path by :func:`clean_path` leads out of the folder that it is relative to."""
    return path == ".." or path.startswith(("/", "../")) or bool(re.match("[A-Za-z]:/", path))


def check_inside(name: str, source: Path, advice: str = "get another copy") -> str:
    """Return ``name``, a path in the list or archive ``source``, clean and relative to its folder.

    A path that leads out of the folder is a UserError, which ends in ``advice``.
    """
    path = clean_path(name, source.parent)
    if is_outside(path):
        raise UserError(f"{source} names {name!r}, which lies outside its own folder; {advice}")
    return path


def _decode(path: Path, errors: str) -> str:
    """Read UTF-8, with or without a byte order mark, or UTF-16 with one."""
    content = read_regular(path, MAX_BYTES)
    has_mark = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if has_mark else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not in {error.encoding.upper()}") from error
    if "\0" in text:
        raise ValueError("it holds NUL characters, so it is no text")
    return text
