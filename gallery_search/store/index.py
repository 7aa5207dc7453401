"""A gallery in a folder: search, look up and filter images."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gallery_search.store import approximation, explain_damage, similarity
from gallery_search.store.database import Database, FolderInfo, create_database, transaction
from gallery_search.store.metadata import Filter, Hit, natural_key
from gallery_search.store.protocol import NO_FILTER, explain_other_model
from gallery_search.store.vectors import Vectors, find_nearest
from gallery_search.store.writer import FolderWriter, approximation_path, vector_path
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.files import atomic_folder, explain_write_errors, hold_lock

T = TypeVar("T")


class GalleryIndex:
    """A store in a folder; any number of processes and threads may search it at once.

    A search sees all batches that were complete when it began. Similarities come from the vectors
    themselves: an approximation may miss a hit but never reports a wrong similarity. See
    :func:`gallery_search.open_store` for the arguments, :class:`gallery_search.Store` for the
    methods.
    """

    def __init__(self, folder: str | os.PathLike[str], fingerprint: str = "", gallery: str = ""):
        self.folder, self.address = Path(folder), str(folder)
        self._lock = threading.Lock()
        self._vectors: Vectors | None = None
        self._faiss_index: tuple[int, Any] | None = None
        self._gallery, self._fingerprint = gallery, fingerprint
        self._fingerprint = self.info().fingerprint

    @classmethod
    def create(cls, folder: str | os.PathLike[str], **values: Any) -> GalleryIndex:
        """Create an empty index in an empty or missing folder."""
        info = FolderInfo(**values)
        with atomic_folder(folder) as temporary, explain_write_errors(folder):
            create_database(temporary, info)
        return cls(folder, info.fingerprint)

    @staticmethod
    def exists(folder: str | os.PathLike[str]) -> bool:
        """Whether there is such a folder with something in it."""
        return os.path.exists(folder) and any(os.scandir(folder))

    def info(self) -> FolderInfo:
        """Return the current description."""
        return self._read(lambda database, info: info)

    def describe(self) -> str:
        """Return one line on how it is searched."""
        info = self.info()
        if info.kind == "exact":
            return "exact"
        later = f"{info.rows - info.covered} later images are searched exactly"
        return f"{info.kind}, recall@10 {info.recall:.3f}, {later}"

    def is_outdated(self, kind: str = "auto") -> bool:
        """Whether the approximation is of another kind, or leaves too many images out."""
        info = self.info()
        wanted = approximation.choose_kind(len(self)) if kind == "auto" else kind
        later = info.rows - info.covered if info.kind != "exact" else 0
        return info.kind != wanted or later > approximation.EXACT_UP_TO

    def __len__(self) -> int:
        return self._read(lambda database, info: len(database.valid_rows(info.rows)))

    def versions_of(self, paths: Sequence[str]) -> dict[str, str | None]:
        """Return the version, as it was added, of each path that is there."""
        return self._read(lambda database, info: database.versions_of(paths))

    def withdrawn(self) -> set[str]:
        """Return the paths that were removed and not added again."""
        return self._read(lambda database, info: database.withdrawn())

    def select(self, filter: Filter, limit: int | None = None) -> np.ndarray:
        """Return the ids of the images that ``filter`` accepts, at most ``limit``."""
        return self._read(lambda database, info: database.select(filter, "id", limit))

    def cameras(self) -> list[str]:
        """Return the cameras' names in natural order: c2 before c10."""
        names = self._read(lambda database, info: database.cameras())
        return sorted(names, key=natural_key)

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None if no image has one."""
        return self._read(lambda database, info: database.time_span())

    def look_up(self, ids: Sequence[int]) -> list[Hit]:
        """Return the images with these ids, without unknown ones, in order."""
        hits = self._read(lambda database, info: self._load(database, info, "id", ids))
        by_id = {hit.id: hit for hit in hits.values()}
        return [by_id[number] for number in ids if number in by_id]

    @contextlib.contextmanager
    def writer(self) -> Iterator[FolderWriter]:
        """Yield the index's only writer; raise a UserError if another process writes to it."""
        path = self.folder / "writer.lock"  # stays: deleting it would be a race
        with hold_lock(path, f"another process is writing to {self.folder}; wait or end it"):
            writer = FolderWriter(self.folder)
            writer.delete_leftovers()
            yield writer

    def search(
        self, features: np.ndarray | Embedding, top: int = 10, filter: Filter = NO_FILTER,
        *, exact: bool = False,
    ) -> list[list[Hit]]:  # fmt: skip
        """Return the most similar images of each query, best first.

        Every image is compared if there is no approximation, or if the filter accepts at most
        ``EXACT_UP_TO``. Ties keep the order in which images were added; it is undefined which of
        more than ``SPARE`` tied ones at the end of the list are cut off. For ``shared``, the
        images that are nearest by ``query`` are compared, ``DEPTH`` per hit, unless ``exact``.
        """

        def read(database: Database, info: FolderInfo) -> list[list[Hit]]:
            queries = similarity.prepare_queries(info, features, top)
            every = filter == NO_FILTER
            selected = database.valid_rows(info.rows) if every else database.select(filter)
            if not len(selected) or not len(queries):
                return [[] for _ in queries]
            count = min(top, len(selected))
            vectors = self._open_vectors(database, info)
            is_small = not every and len(selected) <= approximation.EXACT_UP_TO
            candidates = None
            if info.kind != "exact" and not exact and not is_small:
                candidates = self._propose(info, vectors, queries, count, selected)
            if candidates is None:
                depth = count + similarity.SPARE
                if info.metric == "shared":  # by query, whose order is not that of shared
                    depth = len(selected) if exact else similarity.choose_depth(count)
                candidates = find_nearest(vectors, queries, depth, info.metric, selected)
            return self._rank(database, info, queries, candidates, count)

        return self._read(read)

    def _propose(
        self, info: FolderInfo, vectors: Vectors, queries: np.ndarray, top: int,
        selected: np.ndarray,
    ) -> np.ndarray | None:  # fmt: skip
        """Return candidate rows, or None if the approximation finds too few."""
        border = int(np.searchsorted(selected, info.covered))
        covered = None if border == info.covered else selected[:border]
        index, depth = self._open_faiss_index(info), similarity.choose_depth(top)
        rows = approximation.propose_rows(index, queries, depth, info.effort, covered)
        if ((rows >= 0).sum(1) < min(top, border)).any():
            return None
        depth = depth if info.metric == "shared" else top + similarity.SPARE
        later = find_nearest(vectors, queries, depth, info.metric, selected[border:])
        return np.hstack([rows, later])

    def _rank(
        self, database: Database, info: FolderInfo, queries: np.ndarray, candidates: np.ndarray,
        top: int,
    ) -> list[list[Hit]]:  # fmt: skip
        """Return the best of each query's candidate rows (Q, n), -1 for none."""
        vectors, ranked = self._open_vectors(database, info), []
        for query, near in zip(queries, candidates, strict=True):
            rows = np.unique(near[near >= 0])
            visibility = None
            if info.metric == "shared":
                found = self._load(database, info, "row", rows.tolist())
                visibility = np.stack([found[row].visibility for row in rows.tolist()])
            values = similarity.compute_similarities(query, vectors[rows], info.metric, visibility)
            order = np.argsort(-values, kind="stable")[:top]
            ranked.append((rows[order].tolist(), values[order].tolist()))
        unique = sorted({row for rows, _ in ranked for row in rows})
        images = self._load(database, info, "row", unique)
        if missing := set(unique) - set(images):
            raise explain_damage(database.path, f"has no item for row {min(missing)}")
        return [
            [images[row]._replace(similarity=value) for row, value in zip(*each, strict=True)]
            for each in ranked
        ]

    def _load(
        self, database: Database, info: FolderInfo, column: str, values: Sequence[int]
    ) -> dict[int, Hit]:
        """Return images by row."""
        gallery, records = self._gallery or info.gallery, list(database.read(column, values))
        rows = np.array([record.row for record in records], int)
        images = {}
        for record, vector in zip(records, self._open_vectors(database, info)[rows], strict=True):
            item, seen = record.item, record.visibility
            if len(seen) != 4 * info.num_parts:
                raise explain_damage(database.path, f"cannot be used: other parts for {item.path}")
            visibility = np.frombuffer(seen, np.float32)
            images[record.row] = Hit(record.id, item, gallery, vector, visibility)
        return images

    def _read(self, read: Callable[[Database, FolderInfo], T]) -> T:
        """Read in one transaction; a writer that would replace the files waits for its end."""
        try:
            with transaction(self.folder) as database:
                info = database.read_info()
                if self._fingerprint and info.fingerprint != self._fingerprint:
                    raise explain_other_model(self.address, info, self._fingerprint)
                return read(database, info)
        except FileNotFoundError as error:
            raise explain_damage(error.filename, "is missing") from error

    def _open_vectors(self, database: Database, info: FolderInfo) -> Vectors:
        path = vector_path(self.folder, info)
        with self._lock:
            view = self._vectors
            if view is not None and view.path != path:
                view = None
            if view is None or len(view) != info.rows:
                known = view.parity[: info.rows] if view else np.empty(0, np.uint32)
                parity = np.concatenate([known, database.parity(len(known))])[: info.rows]
                if len(parity) < info.rows:
                    raise explain_damage(database.path, f"has no item for row {len(parity)}")
                self._vectors = view = Vectors(path, info.dim, parity, view)
            return view

    def _open_faiss_index(self, info: FolderInfo) -> Any:
        with self._lock:
            if self._faiss_index is None or self._faiss_index[0] != info.serial:
                path = approximation_path(self.folder, info)
                self._faiss_index = info.serial, approximation.load_faiss_index(path, info)
            return self._faiss_index[1]
