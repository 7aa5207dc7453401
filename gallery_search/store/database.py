"""The SQLite database of an index: its description, its items, and what was removed.

It alone decides what belongs to the index: a batch does once its transaction is committed, and a
reader's transaction sees one state to its end, as a commit waits for the readers. Reading needs no
room on the disk. Each item, and the description, carries a checksum.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from gallery_search.store import explain_damage, metadata
from gallery_search.store.metadata import Filter, IndexInfo, Item, check_path, parse_info
from occluded_reid.evaluation.distances import split_range
from occluded_reid.utils.errors import UserError

NAME = "gallery.sqlite"
APPLICATION, FORMAT = 0x6F724758, 2
TIMEOUT = 60  # seconds to wait for another process's transaction
MAX_PARAMETERS = 500  # in one statement

_SCHEMA = {
    "facts": "CREATE TABLE facts (value TEXT NOT NULL, checksum INTEGER NOT NULL)",
    "items": (
        "CREATE TABLE items (id INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL UNIQUE, "
        "path TEXT NOT NULL UNIQUE, camera TEXT, time REAL, identity TEXT, "
        "visibility BLOB NOT NULL, version TEXT, checksum INTEGER NOT NULL)"
    ),
    "removed": "CREATE TABLE removed (row INTEGER PRIMARY KEY)",
    "withdrawn": "CREATE TABLE withdrawn (path TEXT PRIMARY KEY) WITHOUT ROWID",
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
        rows = self._connection.execute("SELECT value, checksum FROM facts").fetchall()
        try:
            ((text, checksum),) = rows
            if zlib.crc32(text.encode()) != checksum:
                raise ValueError("the checksum of its description is wrong")
            return parse_info(text)
        except (TypeError, ValueError, AttributeError) as error:
            raise explain_damage(self.path, f"cannot be used: {error}") from error

    def write_info(self, info: IndexInfo) -> None:
        """Replace the index's description."""
        self._connection.execute("DELETE FROM facts")
        text = json.dumps(asdict(info))
        values = (text, zlib.crc32(text.encode()))
        self._connection.execute("INSERT INTO facts VALUES (?, ?)", values)

    def add(
        self, items: Sequence[Item], first_row: int, visibility: np.ndarray,
        versions: Sequence[str | None],
    ) -> list[int]:  # fmt: skip
        """Add items whose vectors start at ``first_row``; return their ids."""
        ((last,),) = self._connection.execute("SELECT IFNULL(MAX(seq), 0) FROM sqlite_sequence")
        ids = list(range(last + 1, last + 1 + len(items)))
        rows = range(first_row, first_row + len(items))
        insert = f"INSERT INTO items VALUES {_many(range(9))}"
        columns = zip(ids, rows, items, visibility, versions, strict=True)
        for number, row, item, scores, version in columns:
            rest = (scores.tobytes(), version)
            checksum = compute_checksum(number, row, item, *rest)
            try:
                self._connection.execute(insert, (number, row, *astuple(item), *rest, checksum))
            except sqlite3.IntegrityError as error:
                raise UserError(
                    f"{item.path} is in the index {self.path.parent} already; remove it first"
                ) from error
        self.restore([item.path for item in items])
        return ids

    def update(self, items: Iterable[Item]) -> int:
        """Give the items of these paths another camera, time and identity; count the changes."""
        statement = "UPDATE items SET camera = ?, time = ?, identity = ?, checksum = ? WHERE id = ?"
        new, changed = {item.path: item for item in items}, 0
        for number, row, old, *rest in self._read("path", list(new)):
            item = new[old.path]
            if item != old:
                checksum = compute_checksum(number, row, item, *rest)
                values = (item.camera, item.time, item.identity, checksum, number)
                self._connection.execute(statement, values)
                changed += 1
        return changed

    def remove(self, ids: Iterable[int], *, remember: bool) -> int:
        """Remove items; return how many of ``ids`` there were."""
        gone: list[tuple[int, str]] = []
        statement = "DELETE FROM items WHERE id = ? RETURNING row, path"
        for number in ids:
            gone += self._connection.execute(statement, (int(number),)).fetchall()
        write = self._connection.executemany
        write("INSERT INTO removed VALUES (?)", [(row,) for row, _ in gone])
        if remember:
            write("INSERT OR IGNORE INTO withdrawn VALUES (?)", [(path,) for _, path in gone])
        return len(gone)

    def restore(self, paths: Iterable[str]) -> None:
        """Forget that these paths were removed."""
        pairs = [(path,) for path in paths]
        self._connection.executemany("DELETE FROM withdrawn WHERE path = ?", pairs)

    def withdrawn(self) -> set[str]:
        """Return the paths that were removed and not added again."""
        return {path for (path,) in self._connection.execute("SELECT path FROM withdrawn")}

    def renumber_rows(self) -> None:
        """Close the gaps that removed rows left."""
        statement = "UPDATE items SET row = ?, checksum = ? WHERE id = ?"
        ids = self._query_numbers("SELECT id FROM items ORDER BY row", ()).tolist()
        for row, (number, old, *rest) in enumerate(self._read("id", ids)):
            if row != old:
                values = (row, compute_checksum(number, row, *rest), number)
                self._connection.execute(statement, values)
        self._connection.execute("DELETE FROM removed")

    def valid_rows(self, rows: int) -> np.ndarray:
        """Return the rows below ``rows`` that were not removed, ascending."""
        return np.delete(np.arange(rows), self._query_numbers("SELECT row FROM removed", ()))

    def select(self, filter: Filter, column: str = "row", limit: int | None = None) -> np.ndarray:
        """Return the rows or ids of items that ``filter`` accepts, ascending; any within limit."""
        clauses, values = ["1"], list[Any]()
        if filter.cameras:
            clauses.append(f"camera IN {_many(filter.cameras)}")
            values += filter.cameras
        for bound, comparison in ((filter.since, ">="), (filter.until, "<=")):
            if bound is not None:
                kind = ">=" if bound >= metadata.DATES_FROM else "<"
                clauses.append(f"time {comparison} ? AND time {kind} {metadata.DATES_FROM}")
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

    def versions_of(self, paths: Sequence[str]) -> dict[str, str | None]:
        """Return the version, as it was added, of each path that the index has."""
        return dict(self._query_many("SELECT path, version FROM items WHERE path", paths))

    def items(self, rows: Sequence[int], num_parts: int) -> dict[int, tuple[int, Item, np.ndarray]]:
        """Return id, item and visibility (P,) by row; every row must have an item."""
        found = {}
        for number, row, item, scores, _ in self._read("row", rows):
            if len(scores) != 4 * num_parts:
                raise explain_damage(self.path, f"cannot be used: other parts for {item.path}")
            found[row] = (number, item, np.frombuffer(scores, np.float32))
        if missing := set(rows) - set(found):
            raise explain_damage(self.path, f"has no item for row {min(missing)}")
        return found

    def _read(self, column: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Yield id, row, item, visibility and version of the items with such a value."""
        statement = f"SELECT * FROM items WHERE {column}"
        for *record, checksum in self._query_many(statement, values):
            number, row, *fields, scores, version = record
            try:
                for value, kind in zip(fields, (str, str, float, str), strict=True):
                    if value is not None and not isinstance(value, kind):  # SQLite accepts any
                        raise TypeError(f"{fields[0]} has {value!r} instead of a {kind.__name__}")
                check_path(fields[0])
                item = Item(*fields)
                if compute_checksum(number, row, item, scores, version) != checksum:
                    raise ValueError(f"the checksum of {item.path} is wrong")
            except (AttributeError, TypeError, ValueError, UserError) as error:
                raise explain_damage(self.path, f"cannot be used: {error}") from error
            yield number, row, item, scores, version

    def _query_numbers(self, statement: str, values: Sequence[Any]) -> np.ndarray:
        numbers = (number for (number,) in self._connection.execute(statement, values))
        return np.fromiter(numbers, np.int64)

    def _query_many(self, statement: str, values: Sequence[Any]) -> Iterator[Any]:
        """Run ``statement`` with ``IN (values)``, in blocks that SQLite accepts, each by row."""
        for part in split_range(len(values), MAX_PARAMETERS):
            block = values[part]
            sql = f"{statement} IN {_many(block)} ORDER BY row"
            yield from self._connection.execute(sql, block).fetchall()


def compute_checksum(
    number: int, row: int, item: Item, visibility: bytes, version: str | None
) -> int:
    """Return the CRC-32 of a row of the items."""
    time = None if item.time is None else float(item.time)
    values = (number, row, item.path, item.camera, time, item.identity, version)
    text = "\0".join(map(str, values)).encode("utf-8", "replace")
    return zlib.crc32(visibility, zlib.crc32(text))


def create_database(folder: Path, info: IndexInfo) -> None:
    """Write the database of an empty index into ``folder``."""
    path = folder / NAME
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
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
        if path.with_name(f"{NAME}-journal").exists():
            raise UserError(
                f"{path} cannot be read ({error}): its last writer was interrupted; open it once "
                "with write permission to repair it"
            ) from error
        raise explain_damage(path, f"cannot be used: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file so that it can neither call functions nor attach other files."""
    address = f"file:{quote(str(path.absolute()))}?mode=rw"  # as far as it is permitted
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
            f"{path.parent} has format {version}, this program reads format {FORMAT}; build it "
            "anew: tools/search.py build --weights W --gallery DIR --index NEW"
        )
    schema = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    if {name: sql for name, sql in schema if name != "sqlite_sequence"} != _SCHEMA:
        raise explain_damage(path, "has other tables than expected")


def _many(values: Sequence[Any]) -> str:
    """Return SQL's list of as many placeholders."""
    return f"({', '.join('?' * len(values))})"
