"""The gallery index: search, look up and filter images."""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gallery_search.store import explain_damage
from gallery_search.store.approximation import EXACT_UP_TO, load_faiss_index, propose_rows
from gallery_search.store.database import Database, create_database, transaction
from gallery_search.store.exact import SPARE, find_nearest, prepare_vectors, rank_rows
from gallery_search.store.metadata import ApproximationInfo, Filter, Hit, IndexInfo
from gallery_search.store.protocol import NO_FILTER, Store
from gallery_search.store.vectors import Vectors
from gallery_search.store.writer import Writer
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.modeling.similarity import make_query_rows
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_folder, explain_write_errors, hold_lock

DEPTH, MIN_DEPTH = 10, 100  # proposals per hit, and at least

T = TypeVar("T")


class GalleryIndex:
    """Search a gallery; any number of processes and threads may do so at once.

    A search sees all batches that were complete when it began. Similarities come from the vectors
    themselves: an approximation may miss a hit but never reports a wrong similarity.

    Args:
        folder: Of :meth:`create`.
        fingerprint: Of the model that embeds the queries; ``""`` skips the check.
        gallery: Where the images are now; ``""`` for where they were.

    Raises:
        UserError: No index, a damaged one, one of another version, or one of another model.

    >>> index = GalleryIndex("INDEX", model.fingerprint)  # doctest: +SKIP
    >>> index.search(model.embed(crops), top=5)[0][0].item.path  # doctest: +SKIP
    'camera1/0002.jpg'
    """

    def __init__(self, folder: str | os.PathLike[str], fingerprint: str = "", gallery: str = ""):
        self.folder = Path(folder)
        self.address = str(folder)
        self._lock = threading.Lock()
        self._vectors: Vectors | None = None
        self._faiss_index: tuple[int, Any] | None = None
        self._gallery = gallery
        self._fingerprint = fingerprint
        self._fingerprint = self.info().fingerprint

    @classmethod
    def create(cls, folder: str | os.PathLike[str], **values: Any) -> GalleryIndex:
        """Create an empty index in an empty or missing folder.

        Args:
            folder: Of the index.
            values: Metric, dim, num_parts, fingerprint, and if known weights and gallery; see
                :class:`~gallery_search.store.metadata.IndexInfo`.
        """
        info = IndexInfo(**values)
        with atomic_folder(folder) as temporary, explain_write_errors(folder):
            create_database(temporary, info)
        return cls(folder, info.fingerprint)

    @staticmethod
    def exists(folder: str | os.PathLike[str]) -> bool:
        """Whether there is such a folder with something in it."""
        return os.path.exists(folder) and any(os.scandir(folder))

    def info(self) -> IndexInfo:
        """Return the current description."""
        return self._read(self._read_info)

    def describe(self) -> str:
        """Return one line on how it is searched."""
        info = self.info()
        if (built := info.approximation) is None:
            return "exact"
        recall = f"recall@10 {built.recall:.3f} ({built.queries} queries)"
        later = info.rows - built.rows
        return f"{built.kind}, {recall}, {later} later images are searched exactly"

    def __len__(self) -> int:
        return self._read(lambda database: len(database.valid_rows(self._read_info(database).rows)))

    def ids_of(self, paths: Sequence[str]) -> dict[str, int]:
        """Return the id of each path that the index has."""
        return self._read(lambda database: database.ids_of(paths))

    def versions_of(self, paths: Sequence[str]) -> dict[str, str | None]:
        """Return the version, as it was added, of each path that the index has."""
        return self._read(lambda database: database.versions_of(paths))

    def withdrawn(self) -> set[str]:
        """Return the paths that were removed and not added again."""
        return self._read(lambda database: database.withdrawn())

    def select(self, filter: Filter, limit: int | None = None) -> np.ndarray:
        """Return the ids of the items that ``filter`` accepts, at most ``limit``."""
        return self._read(lambda database: database.select(filter, "id", limit))

    def cameras(self) -> list[str]:
        """Return the cameras' names in natural order: c2 before c10."""
        return sorted(self._read(lambda database: database.cameras()), key=natural_key)

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None if no item has one."""
        return self._read(lambda database: database.time_span())

    def look_up(self, ids: Sequence[int]) -> list[Hit]:
        """Return the images with these ids, without unknown ones, in order."""
        return self._read(lambda database: self._look_up(database, ids))

    @contextlib.contextmanager
    def writer(self) -> Iterator[Writer]:
        """Yield the index's only writer; raise a UserError if another process writes to it."""
        path = self.folder / "writer.lock"  # stays: deleting it would be a race
        with hold_lock(path, f"another process is writing to {self.folder}; wait or end it"):
            writer = Writer(self.folder)
            writer.delete_leftovers()
            yield writer

    def search(
        self, features: np.ndarray | Embedding, top: int = 10, filter: Filter = NO_FILTER,
        *, exact: bool = False,
    ) -> list[list[Hit]]:  # fmt: skip
        """Return the most similar gallery images of each query, best first.

        Every item is compared if there is no approximation, or if the filter accepts at most
        ``EXACT_UP_TO`` items. Ties keep the order in which items were added; it is undefined which
        of more than ``SPARE`` tied items at the end of the list are cut off. For ``shared``, the
        :func:`choose_depth` items that are nearest by ``query`` are compared, unless ``exact``.

        Args:
            features: what the model's ``embed`` returned, or queries (Q, D) of
                :func:`~occluded_reid.modeling.similarity.make_query_rows`.
            top: Hits per query, at most.
            filter: Which items to search.
            exact: Compare every item in any case.

        Raises:
            UserError: Features of another shape, ``top`` below 1, or a damaged index.
        """
        if top < 1:
            raise UserError(f"the number of hits is {top}; expected at least 1")
        return self._read(lambda database: self._search(database, features, top, filter, exact))

    def _search(
        self, database: Database, features: np.ndarray | Embedding, top: int, filter: Filter,
        exact: bool,
    ) -> list[list[Hit]]:  # fmt: skip
        info = self._read_info(database)
        if isinstance(features, Embedding):
            features = make_query_rows(features.tensors(), info.metric).numpy()
        queries = prepare_vectors(features, info.metric, info.dim)
        vectors, all_of_them = self._open_vectors(info), exact
        if filter == NO_FILTER:
            selected = database.valid_rows(info.rows)
        else:
            selected = database.select(filter)
            exact = exact or len(selected) <= EXACT_UP_TO
        top = min(top, len(selected))
        if not top or not len(queries):
            return [[] for _ in queries]
        count, candidates = top + SPARE, None
        if info.metric == "shared":  # by query, whose order is not that of shared
            count = len(selected) if all_of_them else choose_depth(top)
        if info.approximation and not exact:
            candidates = self._propose(
                info.approximation, info, vectors, queries, top, count, selected
            )
        if candidates is None:
            candidates = find_nearest(vectors, queries, count, info.metric, selected)

        def read_visibility(rows: np.ndarray) -> np.ndarray:
            items = database.items(rows.tolist(), info.num_parts)
            return np.stack([items[row][2] for row in rows.tolist()])

        weights = read_visibility if info.metric == "shared" else None
        ranked = [
            rank_rows(vectors, query, rows, top, info.metric, weights)
            for query, rows in zip(queries, candidates, strict=True)
        ]
        unique = np.unique(np.concatenate([rows for rows, _ in ranked])).tolist()
        images = self._load_images(database, info, unique)
        return [
            [
                replace(images[row], similarity=similarity)
                for row, similarity in zip(rows.tolist(), similarities.tolist(), strict=True)
            ]
            for rows, similarities in ranked
        ]

    def _propose(
        self, approximation: ApproximationInfo, info: IndexInfo, vectors: Vectors,
        queries: np.ndarray, top: int, count: int, selected: np.ndarray,
    ) -> np.ndarray | None:  # fmt: skip
        """Return candidate rows, or None if the approximation finds too few."""
        border = np.searchsorted(selected, approximation.rows)
        covered, later = selected[:border], selected[border:]
        index, depth = self._open_faiss_index(approximation, info.dim), choose_depth(top)
        every = border == approximation.rows
        rows = propose_rows(index, queries, depth, approximation.effort, None if every else covered)
        if ((rows >= 0).sum(1) < min(top, border)).any():
            return None
        return np.hstack([rows, find_nearest(vectors, queries, count, info.metric, later)])

    def _look_up(self, database: Database, ids: Sequence[int]) -> list[Hit]:
        rows = database.rows_of(ids)
        images = self._load_images(database, self._read_info(database), list(rows.values()))
        return [images[rows[number]] for number in ids if number in rows]

    def _load_images(self, database: Database, info: IndexInfo, rows: list[int]) -> dict[int, Hit]:
        folder = Path(self._gallery or info.gallery)
        items = database.items(rows, info.num_parts)
        images = {}
        for row, vector in zip(rows, self._open_vectors(info)[np.array(rows, int)], strict=True):
            number, item, visibility = items[row]
            images[row] = Hit(number, item, folder / item.path, vector, visibility)
        return images

    def _read(self, read: Callable[[Database], T]) -> T:
        """Read in one transaction; a writer that would replace the files waits for its end."""
        try:
            with transaction(self.folder) as database:
                return read(database)
        except FileNotFoundError as error:
            raise explain_damage(error.filename, "is missing") from error

    def _read_info(self, database: Database) -> IndexInfo:
        info = database.read_info()
        if self._fingerprint and info.fingerprint != self._fingerprint:
            raise UserError(
                f"{self.folder} was built by another model ({info.fingerprint}, weights "
                f"{info.weights or 'unknown'}) than the queries' ({self._fingerprint}): their "
                "vectors cannot be compared; use that model, or build the index anew"
            )
        return info

    def _open_vectors(self, info: IndexInfo) -> Vectors:
        with self._lock:
            view = self._vectors
            if view is None or (view.generation, len(view)) != (info.generation, info.rows):
                self._vectors = view = Vectors(self.folder, info, view)
            return view

    def _open_faiss_index(self, approximation: ApproximationInfo, dim: int) -> Any:
        with self._lock:
            if self._faiss_index is None or self._faiss_index[0] != approximation.serial:
                loaded = load_faiss_index(self.folder, approximation, dim)
                self._faiss_index = approximation.serial, loaded
            return self._faiss_index[1]


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key by which c2 comes before c10.

    >>> sorted(["c10", "gate", "2", "c2"], key=natural_key)
    ['2', 'c2', 'c10', 'gate']
    """
    parts = re.findall(r"\d{1,18}|\D+", name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def choose_depth(top: int) -> int:
    """Return the number of proposals for ``top`` hits."""
    return max(MIN_DEPTH, DEPTH * top)


def search_indexes(
    indexes: Sequence[Store], features: np.ndarray | Embedding, top: int = 10,
    filter: Filter = NO_FILTER, *, exact: bool = False,
) -> list[list[Hit]]:  # fmt: skip
    """Search several indexes as one gallery; see :meth:`GalleryIndex.search`."""
    results = [index.search(features, top, filter, exact=exact) for index in indexes]
    return [
        list(islice(heapq.merge(*lists, key=lambda hit: -hit.similarity), top))
        for lists in zip(*results, strict=True)
    ]
