"""What changes an index. One process at a time; each call is done whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gallery_search import approximation
from gallery_search.database import transaction
from gallery_search.exact import BLOCK, prepared
from gallery_search.facts import Facts
from gallery_search.metadata import Item, checked_path
from gallery_search.recall import measured
from gallery_search.vectors import Vectors, append_vectors, delete_other_generations
from occluded_reid.evaluation.distances import spans
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import remove_unfinished, write_errors_named


class Writer:
    """Adds, removes and tidies up; see :meth:`GalleryIndex.writer`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(
        self, items: Sequence[Item], features: np.ndarray, visibility: np.ndarray | None = None
    ) -> list[int]:
        """Add a batch of items: when this returns, it outlives a power cut.

        Args:
            items: n images.
            features: (n, D), as the model gives them.
            visibility: (n, P); None where P is 0.

        Returns:
            Their ids.

        Raises:
            UserError: a path that the index has already or that leads out of the gallery's folder,
                arrays of another shape, or a full disk. Nothing is added then.
        """
        with transaction(self.folder, write=True) as database:
            facts = database.facts()
            values = prepared(features, facts.metric, facts.dim)
            if visibility is None:
                visibility = np.empty((len(items), 0))
            visibility = np.asarray(visibility, np.float32)
            if len(values) != len(items) or visibility.shape != (len(items), facts.num_parts):
                raise UserError(
                    f"{len(items)} items, features {values.shape} and visibility "
                    f"{visibility.shape} do not fit {self.folder}, which holds vectors of "
                    f"{facts.dim} numbers and {facts.num_parts} parts"
                )
            for item in items:
                checked_path(item.path)
            ids = database.add(items, facts.rows, visibility)
            append_vectors(self.folder, facts.generation, facts.rows, values)
            database.set_facts(replace(facts, rows=facts.rows + len(items)))
        return ids

    def remove(self, ids: Iterable[int]) -> int:
        """Remove items; return how many there were. Their vectors stay until :meth:`compact`."""
        with transaction(self.folder, write=True) as database:
            return database.remove(ids)

    def compact(self) -> None:
        """Write the vectors anew without the removed ones; the approximation is dropped."""
        with transaction(self.folder, write=True) as database:
            facts = database.facts()
            removed = database.removed_rows()
            if not len(removed):
                return
            vectors = self._vectors(facts)
            kept = np.delete(np.arange(facts.rows), removed)
            for part in spans(len(kept), max(1, BLOCK // facts.dim)):
                append_vectors(self.folder, facts.generation + 1, part.start, vectors[kept[part]])
            database.renumber()
            generation = facts.generation + 1
            facts = replace(facts, generation=generation, rows=len(kept), approximation=None)
            database.set_facts(facts)
        self.delete_leftovers()

    def optimise(self, kind: str = "auto") -> Facts:
        """Build an approximation of all vectors, or drop it, and measure its recall.

        Args:
            kind: ``exact``, ``hnsw``, ``ivf``, ``ivfpq``, or ``auto``: by the number of items, see
                :func:`gallery_search.approximation.kind_for`.

        Returns:
            The facts, now with the recall.

        Raises:
            UserError: no such kind, too few items, or a full disk.
        """
        with transaction(self.folder) as database:
            facts = database.facts()
            living = np.delete(np.arange(facts.rows), database.removed_rows())
        if kind == "auto":
            kind = approximation.kind_for(len(living))
        serial = facts.serial + 1
        built = None
        if kind != "exact":
            vectors = self._vectors(facts)
            index = approximation.build(vectors, facts.dim, facts.metric, kind)
            found = measured(index, vectors, facts.metric, living)
            checksum = approximation.save(index, self.folder, serial)
            built = approximation.Approximation(
                kind, serial, facts.rows, checksum, found.effort, found.recall, found.queries
            )
        facts = replace(facts, serial=serial, approximation=built)
        with transaction(self.folder, write=True) as database:
            database.set_facts(facts)
        self.delete_leftovers()
        return facts

    def delete_leftovers(self) -> None:
        """Delete files that no state refers to any more, such as those of a killed process."""
        with transaction(self.folder) as database:
            facts = database.facts()
        with write_errors_named(self.folder):
            remove_unfinished(self.folder)
            delete_other_generations(self.folder, facts.generation)
            kept = facts.approximation
            approximation.delete_others(self.folder, kept.serial if kept else 0)

    def _vectors(self, facts: Facts) -> Vectors:
        return Vectors(self.folder, facts.generation, facts.rows, facts.dim)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Writer]:
    """Give the one writer of an index.

    Raises:
        UserError: there is another one, or the file system has no locks.
    """
    path = folder / "writer.lock"  # stays, for removing it would be a race
    with write_errors_named(path):
        stream = path.open("a")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is writing to {folder}; wait for it, or end it"
            ) from error
        except OSError as error:
            raise UserError(
                f"{folder} lies on a file system without locks; choose another folder"
            ) from error
        writer = Writer(folder)
        writer.delete_leftovers()
        yield writer
