"""The SQLite database of a folder: its description, its images, and what was removed.

It alone decides what belongs to the index: a batch does once its transaction is committed, and a
reader's transaction sees one state to its end, as a commit waits for the readers. Reading needs no
room on the disk. Each image, and the description, carries a checksum.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from gallery_search.store import explain_damage, metadata
from gallery_search.store.metadata import Filter, IndexInfo, Item, check_path, parse_info
from occluded_reid.data.image_names import make_id
from occluded_reid.evaluation.distances import split_range
from occluded_reid.utils.errors import UserError

NAME = "gallery.sqlite"
APPLICATION, FORMAT = 0x6F724758, 3
TIMEOUT = 60  # seconds to wait for another process's transaction
MAX_PARAMETERS = 500  # in one statement

_SCHEMA = {
    "facts": "CREATE TABLE facts (value TEXT NOT NULL, checksum INTEGER NOT NULL)",
    "items": (
        "CREATE TABLE items (id INTEGER PRIMARY KEY, row INTEGER NOT NULL UNIQUE, "
        "path TEXT NOT NULL, camera TEXT, time REAL, identity TEXT, visibility BLOB NOT NULL, "
        "version TEXT, parity INTEGER NOT NULL, checksum INTEGER NOT NULL)"
    ),
    "removed": "CREATE TABLE removed (row INTEGER PRIMARY KEY, parity INTEGER NOT NULL)",
    "withdrawn": "CREATE TABLE withdrawn (path TEXT PRIMARY KEY) WITHOUT ROWID",
    "items_by_camera": "CREATE INDEX items_by_camera ON items (camera, time)",
    "items_by_time": "CREATE INDEX items_by_time ON items (time)",
}


@dataclass(frozen=True)
class FolderInfo(IndexInfo):
    """Describe a gallery in a folder."""

    generation: int = 0  # number of the file of vectors
    rows: int = 0  # of that file that belong to the index, including removed ones
    serial: int = 0  # of the latest approximation
    kind: str = "exact"  # of search: or hnsw, ivf, ivfpq, with the following
    covered: int = 0  # rows of the approximation; later ones are searched exactly
    sha256: str = ""  # of its file
    effort: int = 0  # lists (ivf, ivfpq) or breadth (hnsw) of a search
    recall: float = 1.0  # at 10, measured when it was built


class Record(NamedTuple):
    """A row of the images."""

    id: int
    row: int  # of its vector
    item: Item
    visibility: bytes  # (P,) float32
    version: str | None
    parity: int  # of the vector

    def to_row(self) -> tuple[Any, ...]:
        """Return the columns; the last one is the CRC-32 of the others."""
        item, time = self.item, self.item.time
        time = None if time is None else float(time)
        start = self.id, self.row, item.path, item.camera, time, item.identity
        text = "\0".join(map(str, (*start, self.version, self.parity)))
        checksum = zlib.crc32(self.visibility, zlib.crc32(text.encode("utf-8", "replace")))
        return (*start, self.visibility, self.version, self.parity, checksum)


class Database:
    """One transaction, which reads one state."""

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path = path
        self._connection = connection

    def read_info(self) -> FolderInfo:
        """Return the index's description."""
        rows = self._connection.execute("SELECT value, checksum FROM facts").fetchall()
        try:
            ((text, checksum),) = rows
            if zlib.crc32(text.encode()) != checksum:
                raise ValueError("the checksum of its description is wrong")
            info = parse_info(text, FolderInfo)
            if info.covered > info.rows:
                raise ValueError("the approximation covers more rows than there are")
            return info
        except (TypeError, ValueError, AttributeError) as error:
            raise explain_damage(self.path, f"cannot be used: {error}") from error

    def write_info(self, info: FolderInfo) -> None:
        """Replace the index's description."""
        self._connection.execute("DELETE FROM facts")
        text = json.dumps(asdict(info))
        values = (text, zlib.crc32(text.encode()))
        self._connection.execute("INSERT INTO facts VALUES (?, ?)", values)

    def write(self, records: Iterable[Record], *, replace: bool = False) -> None:
        """Write images, which are there already if ``replace``."""
        verb, path = "REPLACE" if replace else "INSERT", ""

        def convert() -> Iterator[tuple[Any, ...]]:
            nonlocal path
            for record in records:
                path = record.item.path
                yield record.to_row()

        try:
            statement = f"{verb} INTO items VALUES {_many(range(10))}"
            self._connection.executemany(statement, convert())
        except sqlite3.IntegrityError as error:
            raise UserError(
                f"{path} is in the index {self.path.parent} already; remove it first"
            ) from error

    def remove(self, ids: Iterable[int], *, remember: bool) -> int:
        """Remove images; return how many of ``ids`` there were."""
        gone: list[tuple[int, int, str]] = []
        statement = "DELETE FROM items WHERE id = ? RETURNING row, parity, path"
        for number in ids:
            gone += self._connection.execute(statement, (int(number),)).fetchall()
        write = self._connection.executemany
        write("INSERT INTO removed VALUES (?, ?)", [row[:2] for row in gone])
        if remember:
            write("INSERT OR IGNORE INTO withdrawn VALUES (?)", [row[2:] for row in gone])
        return len(gone)

    def restore(self, paths: Iterable[str]) -> None:
        """Forget that these paths were removed."""
        statement = "DELETE FROM withdrawn WHERE path = ?"
        self._connection.executemany(statement, zip(paths, strict=True))

    def renumber_rows(self) -> None:
        """Close the gaps that removed rows left."""
        rows = self._query_numbers("SELECT row FROM items ORDER BY row").tolist()
        records = enumerate(self.read("row", rows))
        self.write((r._replace(row=row) for row, r in records if r.row != row), replace=True)
        self._connection.execute("DELETE FROM removed")

    def withdrawn(self) -> set[str]:
        """Return the paths that were removed and not added again."""
        return {path for (path,) in self._connection.execute("SELECT path FROM withdrawn")}

    def valid_rows(self, rows: int) -> np.ndarray:
        """Return the rows below ``rows`` that were not removed, ascending."""
        return np.delete(np.arange(rows), self._query_numbers("SELECT row FROM removed"))

    def parity(self, first: int) -> np.ndarray:
        """Return the parity words of the rows from ``first`` on, in order."""
        every = "SELECT row, parity FROM items UNION ALL SELECT row, parity FROM removed"
        statement = f"SELECT parity FROM ({every}) WHERE row >= ? ORDER BY row"
        return self._query_numbers(statement, (first,)).astype(np.uint32)

    def select(self, filter: Filter, column: str = "row", limit: int | None = None) -> np.ndarray:
        """Return the rows or ids of images that ``filter`` accepts, ascending; any within limit."""
        clauses, values = ["1"], list[Any]()
        if filter.cameras:
            clauses.append(f"camera IN {_many(filter.cameras)}")
            values += filter.cameras
        for bound, comparison in ((filter.since, ">="), (filter.until, "<=")):
            if bound is not None:
                kind = ">=" if bound >= metadata.DATES_FROM else "<"
                clauses.append(f"time {comparison} ? AND time {kind} {metadata.DATES_FROM}")
                values.append(bound)
        statement = f"SELECT {column} FROM items WHERE {' AND '.join(clauses)} LIMIT ?"
        return np.sort(self._query_numbers(statement, (*values, -1 if limit is None else limit)))

    def cameras(self) -> list[str]:
        """Return the cameras' names."""
        statement = "SELECT DISTINCT camera FROM items WHERE typeof(camera) = 'text'"
        return [name for (name,) in self._connection.execute(statement)]

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None if no image has one."""
        statement = "SELECT (SELECT MIN(time) FROM items), (SELECT MAX(time) FROM items)"
        ((first, last),) = self._connection.execute(statement)
        return None if first is None else (first, last)

    def versions_of(self, paths: Sequence[str]) -> dict[str, str | None]:
        """Return the version, as it was added, of each path that the index has."""
        ids = [make_id(check_path(path)) for path in paths]
        return dict(self._query_many("SELECT path, version FROM items WHERE id", ids))

    def read(self, column: str, values: Sequence[Any]) -> Iterator[Record]:
        """Yield the images with such an id or row, in the order of their rows."""
        for *record, checksum in self._query_many(f"SELECT * FROM items WHERE {column}", values):
            number, row, *fields, scores, version, parity = record
            try:
                for value, kind in zip(fields, (str, str, float, str), strict=True):
                    if value is not None and not isinstance(value, kind):  # SQLite accepts any
                        raise TypeError(f"{fields[0]} has {value!r} instead of a {kind.__name__}")
                check_path(fields[0])
                found = Record(number, row, Item(*fields), scores, version, parity)
                if found.to_row()[-1] != checksum:
                    raise ValueError(f"the checksum of {fields[0]} is wrong")
            except (AttributeError, TypeError, ValueError, UserError) as error:
                raise explain_damage(self.path, f"cannot be used: {error}") from error
            yield found

    def _query_numbers(self, statement: str, values: Sequence[Any] = ()) -> np.ndarray:
        numbers = (number for (number,) in self._connection.execute(statement, values))
        try:
            return np.fromiter(numbers, np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise explain_damage(self.path, f"cannot be used: {error}") from error

    def _query_many(self, statement: str, values: Sequence[Any]) -> Iterator[Any]:
        """Run ``statement`` with ``IN (values)``, in blocks that SQLite accepts, each by row."""
        for part in split_range(len(values), MAX_PARAMETERS):
            block = values[part]
            sql = f"{statement} IN {_many(block)} ORDER BY row"
            yield from self._connection.execute(sql, block).fetchall()


def create_database(folder: Path, info: FolderInfo) -> None:
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
    if dict(schema) != _SCHEMA:
        raise explain_damage(path, "has other tables than expected")


def _many(values: Sequence[Any]) -> str:
    """Return SQL's list of as many placeholders."""
    return f"({', '.join('?' * len(values))})"
