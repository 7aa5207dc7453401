"""The gallery index, as who searches it sees it.

Shapes: Q queries, D feature dimensions, P parts.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gallery_search.approximation import EXACT_UP_TO, load, propose
from gallery_search.database import Database, create_database, transaction
from gallery_search.exact import SPARE, nearest_rows, prepared, ranked
from gallery_search.facts import Approximation, Facts
from gallery_search.metadata import Filter, Item
from gallery_search.vectors import Vectors
from gallery_search.writer import Writer, locked
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import whole_folder, write_errors_named

EVERYTHING = Filter()
DEPTH, LEAST_DEPTH = 10, 100  # proposals for each hit asked for, and at least
ATTEMPTS = 5  # to find the files of one state while compactions replace them

T = TypeVar("T")


@dataclass(frozen=True)
class Hit:
    """A gallery image that a search has found.

    Attributes:
        id: its number in the index, which no other image ever gets.
        similarity: by the model's metric, larger is more alike: the cosine, the inner product, or
            minus the squared Euclidean distance.
        item: what is known of it.
        image: where the picture is.
        visibility: (P,) in [0, 1], 1 = visible.
    """

    id: int
    similarity: float
    item: Item
    image: Path
    visibility: np.ndarray


@dataclass(frozen=True)
class Known:
    """What the index holds of a gallery image.

    Attributes:
        id: its number in the index.
        item: what is known of it.
        image: where the picture is.
        features: (D,) float32 as it was added; of length 1 for the cosine.
        visibility: (P,) in [0, 1], 1 = visible.
    """

    id: int
    item: Item
    image: Path
    features: np.ndarray
    visibility: np.ndarray


class GalleryIndex:
    """A searchable gallery in a folder; any number of processes and threads may search it at once.

    Each search sees the items of all batches that were complete when it began, whoever adds or
    removes some meanwhile. Similarities are always computed from the vectors themselves: an
    approximate index may miss a hit, but never reports a wrong number.

    Args:
        folder: what :meth:`create` made.
        fingerprint: of the model that the queries come from; ``""`` asks for no check.
        gallery: where the images are now; ``""`` is where they were.

    Raises:
        UserError: no index, a damaged one, one of another version, or one of another model.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        fingerprint: str = "",
        gallery: str | os.PathLike[str] = "",
    ):
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self._view: Vectors | None = None
        self._loaded: tuple[int, Any] = (0, None)
        self._gallery = str(gallery)
        self._fingerprint = fingerprint
        self._fingerprint = self.facts().fingerprint

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
        """Make an index without items; see :class:`Facts` for the arguments.

        Raises:
            UserError: the folder holds files already, or cannot be written.
        """
        facts = Facts(metric, dim, num_parts, fingerprint, weights, gallery)
        with whole_folder(folder) as temporary, write_errors_named(folder):
            create_database(temporary, facts)
        return cls(folder, fingerprint)

    def facts(self) -> Facts:
        """Return what holds for the index now."""
        return self._read(self._facts)

    def __len__(self) -> int:
        return self._read(lambda base: self._facts(base).rows - len(base.removed_rows()))

    def ids(self, paths: Sequence[str]) -> dict[str, int]:
        """Return the ids of those of ``paths`` that the index has."""
        return self._read(lambda database: database.ids(paths))

    def select(self, filter: Filter, limit: int | None = None) -> np.ndarray:
        """Return the ids of all items that ``filter`` lets through, or of ``limit`` of them."""
        return self._read(lambda database: database.selected(filter, "id", limit))

    def cameras(self) -> list[str]:
        """Return the names of all cameras, in the order of the alphabet."""
        return self._read(lambda database: database.cameras())

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None where no item has one."""
        return self._read(lambda database: database.time_span())

    def look_up(self, ids: Sequence[int]) -> list[Known]:
        """Return what the index holds of those of ``ids`` that it has, in their order."""
        return self._read(lambda database: self._known(database, ids))

    def writer(self) -> contextlib.AbstractContextManager[Writer]:
        """Return a context in which this process alone may change the index.

        Raises:
            UserError: another process writes to it.
        """
        return locked(self.folder)

    def search(
        self,
        features: np.ndarray,
        top: int = 10,
        filter: Filter = EVERYTHING,
        *,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """Return the gallery images most like each query, the best first.

        Without an approximation, or with a filter that leaves at most ``EXACT_UP_TO`` items, every
        item is looked at. Equally similar hits stand in the order in which they were added; which
        of more than ``SPARE`` equal ones at the end of the list are left out is not defined.

        Args:
            features: (Q, D), as the model gives them.
            top: hits for each query; less where there are less items.
            filter: which items to look at.
            exact: look at every item, whatever the index has.

        Raises:
            UserError: features of another shape, or an index that is damaged.
        """
        if top < 1:
            raise UserError(f"the number of hits is {top}; at least 1 is expected")
        return self._read(lambda database: self._search(database, features, top, filter, exact))

    def _search(
        self, database: Database, features: np.ndarray, top: int, filter: Filter, exact: bool
    ) -> list[list[Hit]]:
        facts = self._facts(database)
        queries = prepared(features, facts.metric, facts.dim)
        vectors = self._vectors(facts)
        filtered = filter != EVERYTHING
        if filtered:
            selected = database.selected(filter)
        else:
            selected = np.delete(np.arange(facts.rows), database.removed_rows())
        top = min(top, len(selected))
        if not top or not len(queries):
            return [[] for _ in queries]
        exact = exact or (filtered and len(selected) <= EXACT_UP_TO)
        rows: np.ndarray | None = None
        if facts.approximation and not exact:
            rows = self._proposed(facts, facts.approximation, vectors, queries, top, selected)
        if rows is None:
            rows = nearest_rows(vectors, queries, top + SPARE, facts.metric, selected)
        found = [
            ranked(vectors, query, row, top, facts.metric)
            for query, row in zip(queries, rows, strict=True)
        ]
        return self._hits(database, facts, found)

    def _proposed(
        self,
        facts: Facts,
        approximation: Approximation,
        vectors: Vectors,
        queries: np.ndarray,
        top: int,
        selected: np.ndarray,
    ) -> np.ndarray | None:
        """Return rows worth a comparison, or None where the approximation finds too few."""
        border = np.searchsorted(selected, approximation.rows)
        covered, later = selected[:border], selected[border:]
        rows = propose(
            self._faiss_index(facts, approximation),
            queries,
            max(LEAST_DEPTH, DEPTH * top),
            approximation.effort,
            None if border == approximation.rows else covered,
        )
        if ((rows >= 0).sum(1) < min(top, border)).any():
            return None
        return np.hstack([rows, nearest_rows(vectors, queries, top + SPARE, facts.metric, later)])

    def _known(self, database: Database, ids: Sequence[int]) -> list[Known]:
        facts = self._facts(database)
        rows = database.rows(ids)
        items = database.items(list(rows.values()), facts.num_parts)
        vectors = self._vectors(facts)
        known = []
        for number in ids:
            if number in rows:
                _, item, visibility = items[rows[number]]
                features = vectors[np.array([rows[number]])][0]
                known.append(Known(number, item, self._place(facts, item), features, visibility))
        return known

    def _place(self, facts: Facts, item: Item) -> Path:
        return Path(self._gallery or facts.gallery) / item.path

    def _hits(
        self, database: Database, facts: Facts, found: list[tuple[np.ndarray, np.ndarray]]
    ) -> list[list[Hit]]:
        known = database.items(
            np.unique(np.concatenate([rows for rows, _ in found])).tolist(), facts.num_parts
        )
        lists = []
        for rows, similarities in found:
            hits = []
            for row, similarity in zip(rows.tolist(), similarities.tolist(), strict=True):
                number, item, visibility = known[row]
                image = self._place(facts, item)
                hits.append(Hit(number, similarity, item, image, visibility))
            lists.append(hits)
        return lists

    def _read(self, ask: Callable[[Database], T]) -> T:
        """Ask within one transaction; anew where compaction has just replaced the files."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with transaction(self.folder) as database:
                    return ask(database)
            except FileNotFoundError as error:
                if attempt == ATTEMPTS:
                    raise UserError(
                        f"{error.filename} is missing; restore the folder from a copy, or build "
                        "the index anew"
                    ) from error
        raise AssertionError("unreachable")

    def _facts(self, database: Database) -> Facts:
        facts = database.facts()
        if self._fingerprint and facts.fingerprint != self._fingerprint:
            raise UserError(
                f"{self.folder} was built by another model ({facts.fingerprint}, weights "
                f"{facts.weights or 'unknown'}) than the one asked with ({self._fingerprint}): "
                "their vectors cannot be compared; use that model, or build the index anew"
            )
        return facts

    def _vectors(self, facts: Facts) -> Vectors:
        with self._lock:
            held = self._view
            same = held is not None and held.generation == facts.generation
            if held is None or not same or len(held) != facts.rows:
                verified = held.verified if held is not None and same else None
                held = Vectors(self.folder, facts.generation, facts.rows, facts.dim, verified)
                self._view = held
            return held

    def _faiss_index(self, facts: Facts, approximation: Approximation) -> Any:
        with self._lock:
            if self._loaded[0] != approximation.serial:
                loaded = load(self.folder, approximation, facts.dim)
                self._loaded = approximation.serial, loaded
            return self._loaded[1]
