"""Change an index: one process at a time, each call whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gallery_search.store import approximation
from gallery_search.store.database import transaction
from gallery_search.store.exact import BLOCK, prepare_vectors
from gallery_search.store.metadata import ApproximationInfo, IndexInfo, Item, check_path
from gallery_search.store.vectors import Vectors, append_vectors, vector_paths
from occluded_reid.evaluation.distances import split_range
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.modeling.similarity import make_rows
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import explain_write_errors, remove_unfinished


class Writer:
    """Add and remove items; see :meth:`GalleryIndex.writer`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(
        self, items: Sequence[Item], features: np.ndarray | Embedding,
        visibility: np.ndarray | None = None,
        *, versions: Sequence[str | None] = (), overwrite: bool = False,
    ) -> list[int]:  # fmt: skip
        """Add n items and return their ids; once this returns, they survive a power cut.

        Args:
            items: The images.
            features: what the model's ``embed`` returned, or rows (n, D) of
                :func:`~occluded_reid.modeling.similarity.make_rows`.
            visibility: (n, P) beside rows; None if P is 0.
            versions: Of the image files, to notice when they are written anew.
            overwrite: Replace items of the same paths.

        Raises:
            UserError: A path that leads out of the gallery or, without ``overwrite``, is in the
                index already; arrays of another shape, features that are zero or not finite; a
                full disk. Nothing is added.
        """
        with transaction(self.folder, write=True) as database:
            info = database.read_info()
            names = [item.path for item in items]
            if isinstance(features, Embedding):
                visibility = features.visibility
                features = make_rows(features.tensors(), info.metric).numpy()
            values = prepare_vectors(features, info.metric, info.dim, names)
            empty = np.empty((len(items), 0))
            visibility = np.asarray(empty if visibility is None else visibility, np.float32)
            if len(values) != len(items) or visibility.shape != (len(items), info.num_parts):
                raise UserError(
                    f"{len(items)} items, features {values.shape} and visibility "
                    f"{visibility.shape} do not fit {self.folder}: expected vectors of dimension "
                    f"{info.dim} and {info.num_parts} parts"
                )
            for item in items:
                check_path(item.path)
            if overwrite:
                old = database.ids_of([item.path for item in items])
                database.remove(old.values(), remember=False)
            versions = versions or [None] * len(items)
            ids = database.add(items, info.rows, visibility, versions)
            append_vectors(self.folder, info.generation, info.rows, values)
            database.write_info(replace(info, rows=info.rows + len(items)))
        return ids

    def update(self, items: Iterable[Item]) -> int:
        """Give the items of these paths another camera, time and identity; count the changes."""
        with transaction(self.folder, write=True) as database:
            return database.update(items)

    def remove(self, ids: Iterable[int], *, remember: bool = True) -> int:
        """Remove items; return how many there were. :meth:`compact` deletes their vectors.

        With ``remember``, the paths are :meth:`GalleryIndex.withdrawn` until they are added again.
        """
        with transaction(self.folder, write=True) as database:
            return database.remove(ids, remember=remember)

    def compact(self) -> None:
        """Rewrite the vectors without removed rows; this drops the approximation."""
        with transaction(self.folder, write=True) as database:
            info = database.read_info()
            kept = database.valid_rows(info.rows)
            if len(kept) == info.rows:
                return
            vectors = Vectors(self.folder, info)
            generation = info.generation + 1
            for part in split_range(len(kept), max(1, BLOCK // info.dim)):
                append_vectors(self.folder, generation, part.start, vectors[kept[part]])
            database.renumber_rows()
            info = replace(info, generation=generation, rows=len(kept), approximation=None)
            database.write_info(info)
        self.delete_leftovers()

    def optimize(self, kind: str = "auto") -> IndexInfo:
        """Build an approximation of all vectors and measure its recall, or drop it.

        The kind is ``exact``, ``hnsw``, ``ivf``, ``ivfpq``, or ``auto``, see
        :func:`~gallery_search.store.approximation.choose_kind`. Returns the updated description.
        """
        with transaction(self.folder) as database:
            info = database.read_info()
            valid = database.valid_rows(info.rows)
        if kind == "auto":
            kind = approximation.choose_kind(len(valid))
        serial = info.serial + 1
        built = None
        if kind != "exact":
            vectors = Vectors(self.folder, info)
            index = approximation.build_faiss_index(vectors, info, kind)
            measured = approximation.measure_recall(index, vectors, info.metric, valid)
            checksum = approximation.save_faiss_index(index, self.folder, serial)
            built = ApproximationInfo(kind, serial, info.rows, checksum, *measured)
        info = replace(info, serial=serial, approximation=built)
        with transaction(self.folder, write=True) as database:
            database.write_info(info)
        self.delete_leftovers()
        return info

    def delete_leftovers(self) -> None:
        """Delete files that the database does not refer to; processes that mapped one keep it."""
        with transaction(self.folder) as database:
            info = database.read_info()
        kept = {*vector_paths(self.folder, info.generation)}
        if info.approximation:
            kept.add(approximation.approximation_path(self.folder, info.approximation.serial))
        with explain_write_errors(self.folder):
            remove_unfinished(self.folder)
            for pattern in ("vectors-*.f32", "parity-*.u32", "approximation-*.faiss"):
                for path in set(self.folder.glob(pattern)) - kept:
                    path.unlink(missing_ok=True)
