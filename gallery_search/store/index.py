"""The gallery index: search, look up and filter images.

Shapes: Q queries, D feature dimensions, P parts.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import threading
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gallery_search.store.approximation import EXACT_UP_TO, load_faiss_index, propose_rows
from gallery_search.store.database import Database, create_database, transaction
from gallery_search.store.exact import SPARE, find_nearest, prepare_vectors, rank_rows
from gallery_search.store.info import ApproximationInfo, IndexInfo
from gallery_search.store.metadata import Filter, Hit, IndexedImage, Item
from gallery_search.store.vectors import Vectors
from gallery_search.store.writer import Writer, lock_writer
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_folder, explain_write_errors

NO_FILTER = Filter()
DEPTH, MIN_DEPTH = 10, 100  # proposals per hit, and at least
ATTEMPTS = 5  # to open the files of one state while compactions replace them

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
    >>> index.search(model.embed(crops).features, top=5)[0][0].item.path  # doctest: +SKIP
    'camera1/0002.jpg'
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        fingerprint: str = "",
        gallery: str | os.PathLike[str] = "",
    ):
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self._vectors: Vectors | None = None
        self._faiss_index: tuple[int, Any] | None = None
        self._gallery = str(gallery)
        self._fingerprint = fingerprint
        self._fingerprint = self.info().fingerprint

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        *,
        metric: str,
        dim: int,
        num_parts: int,
        fingerprint: str,
        weights: str = "",
        gallery: str = "",
    ) -> GalleryIndex:
        """Create an empty index; see :class:`IndexInfo` for the arguments.

        Raises:
            UserError: The folder is not empty or cannot be written.
        """
        info = IndexInfo(metric, dim, num_parts, fingerprint, weights, gallery)
        with atomic_folder(folder) as temporary, explain_write_errors(folder):
            create_database(temporary, info)
        return cls(folder, fingerprint)

    def info(self) -> IndexInfo:
        """Return the current description."""
        return self._read(self._read_info)

    def __len__(self) -> int:
        return self._read(
            lambda database: self._read_info(database).rows - len(database.removed_rows())
        )

    def ids_of(self, paths: Sequence[str]) -> dict[str, int]:
        """Return the id of each path that the index has."""
        return self._read(lambda database: database.ids_of(paths))

    def select(self, filter: Filter, limit: int | None = None) -> np.ndarray:
        """Return the ids of the items that ``filter`` accepts, at most ``limit``."""
        return self._read(lambda database: database.select(filter, "id", limit))

    def cameras(self) -> list[str]:
        """Return the cameras' names, sorted."""
        return self._read(lambda database: database.cameras())

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None if no item has one."""
        return self._read(lambda database: database.time_span())

    def look_up(self, ids: Sequence[int]) -> list[IndexedImage]:
        """Return the images with these ids, without unknown ones, in order."""
        return self._read(lambda database: self._look_up(database, ids))

    def writer(self) -> contextlib.AbstractContextManager[Writer]:
        """Return a context in which this process alone may change the index.

        Raises:
            UserError: Another process writes to it.
        """
        return lock_writer(self.folder)

    def search(
        self,
        features: np.ndarray,
        top: int = 10,
        filter: Filter = NO_FILTER,
        *,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """Return the most similar gallery images of each query, best first.

        Every item is compared if there is no approximation, or if the filter accepts at most
        ``EXACT_UP_TO`` items. Ties keep the order in which items were added; it is undefined which
        of more than ``SPARE`` tied items at the end of the list are cut off.

        Args:
            features: (Q, D), from the model.
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
        self, database: Database, features: np.ndarray, top: int, filter: Filter, exact: bool
    ) -> list[list[Hit]]:
        info = self._read_info(database)
        queries = prepare_vectors(features, info.metric, info.dim)
        vectors = self._open_vectors(info)
        if filter == NO_FILTER:
            selected = np.delete(np.arange(info.rows), database.removed_rows())
        else:
            selected = database.select(filter)
            exact = exact or len(selected) <= EXACT_UP_TO
        top = min(top, len(selected))
        if not top or not len(queries):
            return [[] for _ in queries]
        candidates: np.ndarray | None = None
        if info.approximation and not exact:
            candidates = self._propose(info, info.approximation, vectors, queries, top, selected)
        if candidates is None:
            candidates = find_nearest(vectors, queries, top + SPARE, info.metric, selected)
        ranked = [
            rank_rows(vectors, query, rows, top, info.metric)
            for query, rows in zip(queries, candidates, strict=True)
        ]
        return self._build_hits(database, info, ranked)

    def _propose(
        self,
        info: IndexInfo,
        approximation: ApproximationInfo,
        vectors: Vectors,
        queries: np.ndarray,
        top: int,
        selected: np.ndarray,
    ) -> np.ndarray | None:
        """Return candidate rows, or None if the approximation finds too few."""
        border = np.searchsorted(selected, approximation.rows)
        covered, later = selected[:border], selected[border:]
        rows = propose_rows(
            self._open_faiss_index(approximation, info.dim),
            queries,
            max(MIN_DEPTH, DEPTH * top),
            approximation.effort,
            None if border == approximation.rows else covered,
        )
        if ((rows >= 0).sum(1) < min(top, border)).any():
            return None
        return np.hstack([rows, find_nearest(vectors, queries, top + SPARE, info.metric, later)])

    def _build_hits(
        self, database: Database, info: IndexInfo, ranked: list[tuple[np.ndarray, np.ndarray]]
    ) -> list[list[Hit]]:
        rows = np.unique(np.concatenate([rows for rows, _ in ranked])).tolist()
        items = database.items(rows, info.num_parts)

        def build_hit(row: int, similarity: float) -> Hit:
            number, item, visibility = items[row]
            return Hit(number, similarity, item, self._image_path(info, item), visibility)

        return [
            [build_hit(*pair) for pair in zip(rows.tolist(), similarities.tolist(), strict=True)]
            for rows, similarities in ranked
        ]

    def _look_up(self, database: Database, ids: Sequence[int]) -> list[IndexedImage]:
        info = self._read_info(database)
        rows = database.rows_of(ids)
        items = database.items(list(rows.values()), info.num_parts)
        vectors = self._open_vectors(info)
        images = []
        for number in ids:
            if number in rows:
                row = rows[number]
                _, item, visibility = items[row]
                path = self._image_path(info, item)
                images.append(
                    IndexedImage(number, item, path, vectors[np.array([row])][0], visibility)
                )
        return images

    def _image_path(self, info: IndexInfo, item: Item) -> Path:
        return Path(self._gallery or info.gallery) / item.path

    def _read(self, read: Callable[[Database], T]) -> T:
        """Read in one transaction; retry if compaction has just replaced the files."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with transaction(self.folder) as database:
                    return read(database)
            except FileNotFoundError as error:
                if attempt == ATTEMPTS:
                    raise UserError(
                        f"{error.filename} is missing; restore the folder from a copy, or build "
                        "the index anew"
                    ) from error
        raise AssertionError("unreachable")

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
            same = view is not None and view.generation == info.generation
            if view is None or not same or len(view) != info.rows:
                verified = view.verified if view is not None and same else None
                view = Vectors(self.folder, info.generation, info.rows, info.dim, verified)
                self._vectors = view
            return view

    def _open_faiss_index(self, approximation: ApproximationInfo, dim: int) -> Any:
        with self._lock:
            if self._faiss_index is None or self._faiss_index[0] != approximation.serial:
                loaded = load_faiss_index(self.folder, approximation, dim)
                self._faiss_index = approximation.serial, loaded
            return self._faiss_index[1]


def search_indexes(
    indexes: Sequence[GalleryIndex],
    features: np.ndarray,
    top: int = 10,
    filter: Filter = NO_FILTER,
    *,
    exact: bool = False,
) -> list[list[Hit]]:
    """Search several indexes as one gallery; see :meth:`GalleryIndex.search`."""
    results = [index.search(features, top, filter, exact=exact) for index in indexes]
    return [
        list(islice(heapq.merge(*lists, key=lambda hit: -hit.similarity), top))
        for lists in zip(*results, strict=True)
    ]
