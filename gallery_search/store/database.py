"""The SQLite database of an index: its description, its items, and the removed rows.

It alone decides what belongs to the index: a batch does once its transaction is committed, and a
reader's transaction sees one state to its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from gallery_search.store import explain_damage
from gallery_search.store.metadata import Filter, IndexInfo, Item, check_path, parse_info
from occluded_reid.evaluation.distances import split_range
from occluded_reid.utils.errors import UserError

NAME = "gallery.sqlite"
APPLICATION, FORMAT = 0x6F724758, 1
TIMEOUT = 60  # seconds to wait for another process's transaction
MAX_PARAMETERS = 500  # in one statement

_SCHEMA = {
    "facts": "CREATE TABLE facts (value TEXT NOT NULL)",
    "items": (
        "CREATE TABLE items (id INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL UNIQUE, "
        "path TEXT NOT NULL UNIQUE, camera TEXT, time REAL, identity TEXT, "
        "visibility BLOB NOT NULL)"
    ),
    "removed": "CREATE TABLE removed (row INTEGER PRIMARY KEY)",
    "items_by_camera": "CREATE INDEX items_by_camera ON items (camera, time)",
    "items_by_time": "CREATE INDEX items_by_time ON items (time)",
}


class Database:
    """One transaction, which reads one state."""

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path = path
        self._connection = connection

    def read_info(self) -> IndexInfo:
        """Return the index's description."""
        rows = self._connection.execute("SELECT value FROM facts").fetchall()
        try:
            ((text,),) = rows
            return parse_info(text)
        except (TypeError, ValueError, AttributeError) as error:
            raise explain_damage(self.path, f"cannot be used: {error}") from error

    def write_info(self, info: IndexInfo) -> None:
        """Replace the index's description."""
        self._connection.execute("DELETE FROM facts")
        self._connection.execute("INSERT INTO facts VALUES (?)", (json.dumps(asdict(info)),))

    def add(self, items: Sequence[Item], first_row: int, visibility: np.ndarray) -> list[int]:
        """Add items whose vectors start at ``first_row``; return their ids."""
        ids = []
        for row, (item, scores) in enumerate(zip(items, visibility, strict=True), first_row):
            try:
                cursor = self._connection.execute(
                    "INSERT INTO items (row, path, camera, time, identity, visibility) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (row, *astuple(item), scores.tobytes()),
                )
            except sqlite3.IntegrityError as error:
                raise UserError(
                    f"{item.path} is in the index {self.path.parent} already; remove it first"
                ) from error
            ids.append(int(cursor.lastrowid or 0))
        return ids

    def remove(self, ids: Iterable[int]) -> int:
        """Remove items; return how many of ``ids`` there were."""
        rows: list[tuple[int]] = []
        for number in ids:
            statement = "DELETE FROM items WHERE id = ? RETURNING row"
            rows += self._connection.execute(statement, (int(number),)).fetchall()
        self._connection.executemany("INSERT INTO removed VALUES (?)", rows)
        return len(rows)

    def renumber_rows(self) -> None:
        """Close the gaps that removed rows left."""
        pairs = self._connection.execute("SELECT id, row FROM items ORDER BY row").fetchall()
        new = [(index, number) for index, (number, row) in enumerate(pairs) if row != index]
        self._connection.executemany("UPDATE items SET row = ? WHERE id = ?", new)
        self._connection.execute("DELETE FROM removed")

    def valid_rows(self, rows: int) -> np.ndarray:
        """Return the rows below ``rows`` that were not removed, ascending."""
        return np.delete(np.arange(rows), self._query_numbers("SELECT row FROM removed", ()))

    def select(self, filter: Filter, column: str = "row", limit: int | None = None) -> np.ndarray:
        """Return the rows or ids of items that ``filter`` accepts, ascending; any within limit."""
        clauses, values = ["1"], list[Any]()
        if filter.cameras:
            clauses.append(f"camera IN ({_placeholders(filter.cameras)})")
            values += filter.cameras
        for bound, comparison in ((filter.since, ">="), (filter.until, "<=")):
            if bound is not None:
                clauses.append(f"time {comparison} ?")
                values.append(bound)
        condition = " AND ".join(clauses)
        values.append(-1 if limit is None else limit)
        statement = f"SELECT {column} FROM items WHERE {condition} LIMIT ?"
        return np.sort(self._query_numbers(statement, values))

    def cameras(self) -> list[str]:
        """Return the cameras' names, sorted, with one index lookup each."""
        names = self._connection.execute(
            "WITH RECURSIVE found (name) AS (SELECT MIN(camera) FROM items UNION ALL "
            "SELECT (SELECT MIN(camera) FROM items WHERE camera > name) FROM found "
            "WHERE name IS NOT NULL) SELECT name FROM found WHERE typeof(name) = 'text'"
        )
        return [name for (name,) in names]

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None if no item has one."""
        ((first, last),) = self._connection.execute(
            "SELECT (SELECT MIN(time) FROM items), (SELECT MAX(time) FROM items)"
        )
        return None if first is None else (first, last)

    def rows_of(self, ids: Sequence[int]) -> dict[int, int]:
        """Return the row of each id that the index has."""
        return dict(self._query_many("SELECT id, row FROM items WHERE id", [int(n) for n in ids]))

    def ids_of(self, paths: Sequence[str]) -> dict[str, int]:
        """Return the id of each path that the index has; no item has a path that leads out."""
        checked = [check_path(path) for path in paths]
        return dict(self._query_many("SELECT path, id FROM items WHERE path", checked))

    def items(self, rows: Sequence[int], num_parts: int) -> dict[int, tuple[int, Item, np.ndarray]]:
        """Return id, item and visibility (P,) by row; every row must have an item."""
        found = {}
        columns = "row, id, visibility, path, camera, time, identity"
        statement = f"SELECT {columns} FROM items WHERE row"
        for row, number, scores, *values in self._query_many(statement, rows):
            try:
                visibility = np.frombuffer(scores, np.float32)
                if len(visibility) != num_parts:
                    raise ValueError(f"item {number} has {len(visibility)} parts")
                for value, kind in zip(values, (str, str, float, str), strict=True):
                    if value is not None and not isinstance(value, kind):  # SQLite accepts any
                        raise TypeError(f"{values[0]} has {value!r} instead of a {kind.__name__}")
                check_path(values[0])
            except (TypeError, ValueError, UserError) as error:
                raise explain_damage(self.path, f"cannot be used: {error}") from error
            found[row] = (number, Item(*values), visibility)
        if missing := set(rows) - set(found):
            raise explain_damage(self.path, f"has no item for row {min(missing)}")
        return found

    def _query_numbers(self, statement: str, values: Sequence[Any]) -> np.ndarray:
        numbers = (number for (number,) in self._connection.execute(statement, values))
        return np.fromiter(numbers, np.int64)

    def _query_many(self, statement: str, values: Sequence[Any]) -> Iterator[Any]:
        """Run ``statement`` with ``IN (values)``, in blocks that SQLite accepts."""
        for part in split_range(len(values), MAX_PARAMETERS):
            block = values[part]
            yield from self._connection.execute(f"{statement} IN ({_placeholders(block)})", block)


def create_database(folder: Path, info: IndexInfo) -> None:
    """Write the database of an empty index into ``folder``."""
    path = folder / NAME
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN")
            for statement in _SCHEMA.values():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            Database(path, connection).write_info(info)
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise explain_damage(path, f"cannot be used: {error}") from error


@contextlib.contextmanager
def transaction(folder: Path, *, write: bool = False) -> Iterator[Database]:
    """Open an index's database for one transaction; an error rolls it back."""
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder} is not a gallery index: it has no {NAME}; use 'build'")
    try:
        with contextlib.closing(_connect(path)) as connection:
            _check_origin(path, connection)
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield Database(path, connection)
            connection.execute("COMMIT")
    except (sqlite3.Error, UnicodeDecodeError) as error:  # a garbled message cannot be decoded
        raise explain_damage(path, f"cannot be used: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file so that it can neither call functions nor attach other files."""
    mode = "rw"
    if not os.access(path.parent, os.W_OK):
        journal = path.with_name(f"{NAME}-wal")
        if journal.exists() and journal.stat().st_size:
            raise UserError(
                f"{path.parent} is read-only, but its last writer was interrupted; open it once "
                "with write permission to repair it"
            )
        mode = "ro&immutable=1"
    address = f"file:{quote(str(path.absolute()))}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=TIMEOUT)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _check_origin(path: Path, connection: sqlite3.Connection) -> None:
    """Reject a foreign file, another version, or additional tables and triggers."""
    ((application,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    if application != APPLICATION:
        raise UserError(f"{path.parent} is not a gallery index: another program wrote {NAME}")
    if version != FORMAT:
        raise UserError(
            f"{path.parent} has format {version}, this program reads format {FORMAT}; use the "
            "version that built it, or build it anew"
        )
    schema = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    if {name: sql for name, sql in schema if name != "sqlite_sequence"} != _SCHEMA:
        raise explain_damage(path, "has other tables than expected")


def _placeholders(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
