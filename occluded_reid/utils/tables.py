"""CSV files with a header, as users write them."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

from occluded_reid.utils.errors import UserError, explain_read_errors


class Row(NamedTuple):
    """A row of a table."""

    line: int  # number in the file, from 1
    cells: dict[str, str]  # text by column, stripped; "" where the row is too short
    surplus: bool  # whether the row has more cells than the header


class Table(NamedTuple):
    """A CSV file, without blank lines; the names of its columns are stripped."""

    path: Path
    columns: list[str]
    rows: list[Row]

    def require(self, *columns: str) -> None:
        """Raise a UserError unless the table has rows with these columns."""
        if not self.rows or not set(columns) <= set(self.columns):
            raise UserError(
                f"{self.path} has the columns {', '.join(self.columns) or '(none)'} and "
                f"{len(self.rows)} rows; it needs rows with {', '.join(columns)}, between commas"
            )


def read_csv(path: str | os.PathLike[str], thing: str, advice: str) -> Table:
    """Read a CSV file in UTF-8, with or without a byte order mark.

    ``thing`` and ``advice`` are for the error: what the file is, and what to do.
    """
    path = Path(path)
    with explain_read_errors(thing, advice), path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, restval="")
        columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        rows = []
        for cells in reader:
            surplus = cells.pop(None, None) is not None
            stripped = {name: text.strip() for name, text in cells.items()}
            rows.append(Row(reader.line_num, stripped, surplus))
    return Table(path, columns, rows)
