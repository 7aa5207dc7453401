"""The database of an index: its facts, its items, and the rows that were removed.

It alone says what belongs to the index: a batch does once its transaction is written, whole or not
at all, and a reader's transaction sees one state to its end.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from gallery_search.facts import Facts
from gallery_search.metadata import Filter, Item, checked_path
from occluded_reid.evaluation.distances import spans
from occluded_reid.utils.errors import UserError

NAME = "gallery.sqlite"
APPLICATION, FORMAT = 0x6F724758, 1  # the file says whose it is, and in which version
PATIENCE = 60  # seconds that a process waits for another one's transaction
AT_ONCE = 500  # values in one statement

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
    """One transaction of an index's database: what it reads is one state."""

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path = path
        self._connection = connection

    def facts(self) -> Facts:
        """Return what holds for the index now.

        Raises:
            UserError: it is not as it should be.
        """
        rows = self._connection.execute("SELECT value FROM facts").fetchall()
        try:
            ((text,),) = rows
            return Facts.read(text)
        except (TypeError, ValueError, AttributeError) as error:
            raise damaged(self.path, error) from error

    def set_facts(self, facts: Facts) -> None:
        """Replace the facts."""
        self._connection.execute("DELETE FROM facts")
        self._connection.execute("INSERT INTO facts VALUES (?)", (facts.written(),))

    def add(self, items: Sequence[Item], first_row: int, visibility: np.ndarray) -> list[int]:
        """Add items whose vectors stand in the rows from ``first_row`` on; return their ids.

        Raises:
            UserError: a path that the index has already.
        """
        ids = []
        for row, (item, seen) in enumerate(zip(items, visibility, strict=True), first_row):
            values = (row, item.path, item.camera, item.time, item.identity, seen.tobytes())
            try:
                cursor = self._connection.execute(
                    "INSERT INTO items (row, path, camera, time, identity, visibility) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    values,
                )
            except sqlite3.IntegrityError as error:
                raise UserError(
                    f"{item.path} is in the index {self.path.parent} already; remove it first"
                ) from error
            ids.append(int(cursor.lastrowid or 0))
        return ids

    def remove(self, ids: Iterable[int]) -> int:
        """Remove items; return how many of ``ids`` there were."""
        rows = [
            row
            for number in ids
            for (row,) in self._connection.execute(
                "DELETE FROM items WHERE id = ? RETURNING row", (int(number),)
            ).fetchall()
        ]
        self._connection.executemany("INSERT INTO removed VALUES (?)", [(row,) for row in rows])
        return len(rows)

    def renumber(self) -> None:
        """Close the gaps that removed rows have left in the numbers of the rows."""
        found = self._connection.execute("SELECT id, row FROM items ORDER BY row").fetchall()
        new = [(place, number) for place, (number, row) in enumerate(found) if row != place]
        self._connection.executemany("UPDATE items SET row = ? WHERE id = ?", new)
        self._connection.execute("DELETE FROM removed")

    def removed_rows(self) -> np.ndarray:
        """Return the rows that belong to no item any more, ascending."""
        return self._numbers("SELECT row FROM removed ORDER BY row", ())

    def selected(self, filter: Filter, column: str = "row", limit: int | None = None) -> np.ndarray:
        """Return the rows, or the ids, of the items that ``filter`` lets through, ascending.

        Args:
            filter: which items.
            column: ``row`` or ``id``.
            limit: any so many of them are enough.
        """
        clauses, values = ["1"], list[Any]()
        if filter.cameras:
            clauses.append(f"camera IN ({_marks(filter.cameras)})")
            values += filter.cameras
        for bound, comparison in ((filter.since, ">="), (filter.until, "<=")):
            if bound is not None:
                clauses.append(f"time {comparison} ?")
                values.append(bound)
        condition = " AND ".join(clauses)
        values.append(-1 if limit is None else limit)
        statement = f"SELECT {column} FROM items WHERE {condition} LIMIT ?"
        return np.sort(self._numbers(statement, values))

    def cameras(self) -> list[str]:
        """Return the names of all cameras; each takes one step down the tree of their names."""
        names = self._connection.execute(
            "WITH RECURSIVE found (name) AS (SELECT MIN(camera) FROM items UNION ALL "
            "SELECT (SELECT MIN(camera) FROM items WHERE camera > name) FROM found "
            "WHERE name IS NOT NULL) SELECT name FROM found WHERE typeof(name) = 'text'"
        )
        return [name for (name,) in names]

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None where no item has one."""
        ((first, last),) = self._connection.execute(
            "SELECT (SELECT MIN(time) FROM items), (SELECT MAX(time) FROM items)"
        )
        return None if first is None else (first, last)

    def rows(self, ids: Sequence[int]) -> dict[int, int]:
        """Return the row of each of ``ids`` that the index has."""
        found: dict[int, int] = {}
        for part in spans(len(ids), AT_ONCE):
            some = [int(number) for number in ids[part]]
            found.update(
                self._connection.execute(
                    f"SELECT id, row FROM items WHERE id IN ({_marks(some)})", some
                )
            )
        return found

    def ids(self, paths: Sequence[str]) -> dict[str, int]:
        """Return the id of each of ``paths`` that the index has.

        Raises:
            UserError: a path that no item can have.
        """
        found: dict[str, int] = {}
        paths = [checked_path(path) for path in paths]
        for part in spans(len(paths), AT_ONCE):
            some = paths[part]
            found.update(
                self._connection.execute(
                    f"SELECT path, id FROM items WHERE path IN ({_marks(some)})", some
                )
            )
        return found

    def items(self, rows: Sequence[int], num_parts: int) -> dict[int, tuple[int, Item, np.ndarray]]:
        """Return id, item and visibility (P,) of each of ``rows``.

        Raises:
            UserError: a row without an item, or one that we did not write.
        """
        found = {}
        for part in spans(len(rows), AT_ONCE):
            some = [int(row) for row in rows[part]]
            for row, number, path, camera, time, identity, seen in self._connection.execute(
                "SELECT row, id, path, camera, time, identity, visibility FROM items "
                f"WHERE row IN ({_marks(some)})",
                some,
            ):
                try:
                    visibility = np.frombuffer(seen, np.float32)
                    if len(visibility) != num_parts:
                        raise ValueError(f"item {number} has {len(visibility)} parts")
                    item = _checked(Item(checked_path(path), camera, time, identity))
                    found[row] = (number, item, visibility)
                except (TypeError, ValueError, UserError) as error:
                    raise damaged(self.path, error) from error
        if missing := {int(row) for row in rows} - set(found):
            raise damaged(self.path, f"nothing is known of row {min(missing)}")
        return found

    def _numbers(self, statement: str, values: Sequence[Any]) -> np.ndarray:
        numbers = (number for (number,) in self._connection.execute(statement, values))
        return np.fromiter(numbers, np.int64)


def create_database(folder: Path, facts: Facts) -> None:
    """Write the database of an index without items into ``folder``.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / NAME
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN")
            for statement in _SCHEMA.values():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            Database(path, connection).set_facts(facts)
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise damaged(path, error) from error


@contextlib.contextmanager
def transaction(folder: Path, *, write: bool = False) -> Iterator[Database]:
    """Open an index's database for one transaction.

    An error undoes all that was written.

    Raises:
        UserError: no index, one of another version, a damaged one, or a full disk.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder} is no gallery index: it has no {NAME}; make one by 'build'")
    try:
        with contextlib.closing(_connected(path)) as connection:
            _check_origin(path, connection)
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield Database(path, connection)
            connection.execute("COMMIT")
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: its message is garbage too
        raise damaged(path, error) from error


def damaged(path: Path, why: object) -> UserError:
    """Return the error that names what cannot be read, or written, and what to do."""
    return UserError(
        f"{path} cannot be used: {why}; is the disk full, or the file damaged? Then restore the "
        "folder from a copy, or build the index anew"
    )


def _connected(path: Path) -> sqlite3.Connection:
    """Open the file so that it can neither run functions nor name other files."""
    address = f"file:{quote(str(path.absolute()))}?mode=rw"
    if not os.access(path.parent, os.W_OK):
        journal = path.with_name(f"{NAME}-wal")
        if journal.exists() and journal.stat().st_size:
            raise UserError(
                f"{path.parent} may only be read, but its last writer was interrupted; open it "
                "once with the permission to write, which mends it"
            )
        address = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=PATIENCE)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _check_origin(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse a file that is not ours, of another version, or with tables and triggers added."""
    ((application,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    if application != APPLICATION:
        raise UserError(f"{path.parent} is no gallery index: {NAME} is of another program")
    if version != FORMAT:
        raise UserError(
            f"{path.parent} has format {version}, this program reads format {FORMAT}; use the "
            "version that built it, or build it anew"
        )
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    if {name: sql for name, sql in found if name != "sqlite_sequence"} != _SCHEMA:
        raise damaged(path, "its tables are not those that were made")


def _checked(item: Item) -> Item:
    """Return the item if it is of the types that we write; SQLite itself takes any."""
    for value, kind in ((item.camera, str), (item.time, float), (item.identity, str)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{item.path} has {value!r} where a {kind.__name__} should stand")
    return item


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
