"""Change an index in a folder: one process at a time, each call whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np

from gallery_search.store import approximation
from gallery_search.store.database import FolderInfo, Record, transaction
from gallery_search.store.metadata import Item
from gallery_search.store.similarity import prepare_batch
from gallery_search.store.vectors import BLOCK, Vectors, append_vectors, compute_parity
from occluded_reid.data.image_names import make_id
from occluded_reid.evaluation.distances import split_range
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.files import (
    atomic_write,
    explain_write_errors,
    hash_file,
    remove_unfinished,
)


class FolderWriter:
    """Add and remove images; see :class:`gallery_search.Writer`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(
        self, items: Sequence[Item], features: np.ndarray | Embedding,
        visibility: np.ndarray | None = None,
        *, versions: Sequence[str | None] = (), overwrite: bool = False,
    ) -> list[int]:  # fmt: skip
        """Add n images and return their ids; once this returns, they survive a power cut."""
        with transaction(self.folder, write=True) as database:
            info = database.read_info()
            values, visibility = prepare_batch(info, items, features, visibility)
            ids = [make_id(item.path) for item in items]
            if overwrite:
                database.remove(ids, remember=False)
            rows = range(info.rows, info.rows + len(ids))
            seen = [scores.tobytes() for scores in visibility]
            words = compute_parity(values).tolist()
            columns = (ids, rows, items, seen, versions or [None] * len(ids), words)
            database.write(map(Record, *columns))
            database.restore([item.path for item in items])
            append_vectors(vector_path(self.folder, info), info.rows, values)
            database.write_info(replace(info, rows=info.rows + len(ids)))
        return ids

    def update(self, items: Iterable[Item]) -> int:
        """Give the images of these paths another camera, time and identity; count the changes."""
        new = {make_id(item.path): item for item in items}
        with transaction(self.folder, write=True) as database:
            records = [r for r in database.read("id", list(new)) if r.item != new[r.id]]
            database.write((r._replace(item=new[r.id]) for r in records), replace=True)
        return len(records)

    def remove(self, ids: Iterable[int], *, remember: bool = True) -> int:
        """Remove images; return how many there were. :meth:`compact` deletes their vectors."""
        with transaction(self.folder, write=True) as database:
            return database.remove(ids, remember=remember)

    def compact(self, share: float = 0.0) -> None:
        """Rewrite the vectors, and an approximation, without removed rows.

        Nothing is done if these are at most this share of all rows.
        """
        with transaction(self.folder, write=True) as database:
            info = database.read_info()
            kept = database.valid_rows(info.rows)
            if info.rows - len(kept) <= share * info.rows:
                return
            vectors = Vectors(vector_path(self.folder, info), info.dim, database.parity(0))
            new = replace(
                info, generation=info.generation + 1, rows=len(kept), kind="exact", covered=0
            )
            for part in split_range(len(kept), max(1, BLOCK // info.dim)):
                append_vectors(vector_path(self.folder, new), part.start, vectors[kept[part]])
            database.renumber_rows()
            database.write_info(new)
        self.delete_leftovers()
        if info.kind != "exact":
            self.optimize()

    def optimize(self, kind: str = "auto") -> None:
        """Build an approximation of all vectors and measure its recall, or drop it.

        The kind is ``exact``, ``hnsw``, ``ivf``, ``ivfpq``, or ``auto``, see
        :func:`~gallery_search.store.approximation.choose_kind`.
        """
        with transaction(self.folder) as database:
            info = database.read_info()
            valid, parity = database.valid_rows(info.rows), database.parity(0)
        if kind == "auto":
            kind = approximation.choose_kind(len(valid))
        info = replace(info, serial=info.serial + 1, kind=kind, covered=0)
        if kind != "exact":
            vectors = Vectors(vector_path(self.folder, info), info.dim, parity)
            index = approximation.build_faiss_index(vectors, info, kind)
            effort, recall = approximation.measure_recall(index, vectors, info.metric, valid)
            path = approximation_path(self.folder, info)
            with atomic_write(path) as stream:
                faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))
            digest = hash_file(path)
            info = replace(info, covered=info.rows, sha256=digest, effort=effort, recall=recall)
        with transaction(self.folder, write=True) as database:
            database.write_info(info)
        self.delete_leftovers()

    def delete_leftovers(self) -> None:
        """Delete files that the database does not refer to; processes that mapped one keep it."""
        with transaction(self.folder) as database:
            info = database.read_info()
        kept = {vector_path(self.folder, info)}
        if info.covered:
            kept.add(approximation_path(self.folder, info))
        with explain_write_errors(self.folder):
            remove_unfinished(self.folder)
            for pattern in ("vectors-*.f32", "approximation-*.faiss"):
                for path in set(self.folder.glob(pattern)) - kept:
                    path.unlink(missing_ok=True)


def vector_path(folder: Path, info: FolderInfo) -> Path:
    """Return the path of the vectors."""
    return folder / f"vectors-{info.generation}.f32"


def approximation_path(folder: Path, info: FolderInfo) -> Path:
    """Return the path of the approximation."""
    return folder / f"approximation-{info.serial}.faiss"
