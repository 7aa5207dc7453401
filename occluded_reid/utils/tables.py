"""CSV files with a header, as users write them."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

from occluded_reid.utils.errors import UserError, explain_read_errors


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: line number in the file, from 1.
        cells: text by column, stripped; ``""`` where the row is too short.
        surplus: whether the row has more cells than the header.
    """

    line: int
    cells: dict[str, str]
    surplus: bool


class Table(NamedTuple):
    """A CSV file.

    Attributes:
        path: of the file.
        columns: their names, stripped.
        rows: without blank lines.
    """

    path: Path
    columns: list[str]
    rows: list[Row]

    def require(self, *columns: str) -> None:
        """Check that the table has rows with these columns.

        Raises:
            UserError: it does not.
        """
        if not self.rows or not set(columns) <= set(self.columns):
            raise UserError(
                f"{self.path} has the columns {', '.join(self.columns) or '(none)'} and "
                f"{len(self.rows)} rows; it needs rows with {', '.join(columns)}, between commas"
            )


def read_csv(path: str | os.PathLike[str], thing: str, advice: str) -> Table:
    """Read a CSV file in UTF-8, with or without a byte order mark.

    Args:
        path: of the file.
        thing: what it is, for the message.
        advice: what to do if it cannot be read.

    Raises:
        UserError: the file is missing or is no CSV in UTF-8.
    """
    with (
        explain_read_errors(thing, advice),
        Path(path).open(encoding="utf-8-sig", newline="") as stream,
    ):
        reader = csv.DictReader(stream, restval="")
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [
            Row(
                reader.line_num,
                {name: text.strip() for name, text in cells.items() if name is not None},
                None in cells,
            )
            for cells in reader
        ]
    return Table(Path(path), columns, rows)
