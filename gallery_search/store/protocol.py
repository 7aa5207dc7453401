"""What search needs of a gallery, and the two stores that have it, chosen by an address.

An address is a folder, ``milvus://HOST:PORT/NAME`` (a collection of a Milvus server), or
``milvus:///FILE.db`` (a file of Milvus Lite).
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Protocol

import numpy as np

from gallery_search.store import MILVUS
from gallery_search.store.metadata import Filter, Hit, IndexInfo, Item
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError

NO_FILTER = Filter()


class Store(Protocol):
    """A gallery: vectors, metadata, and the model that made them; threads may share it.

    Every method raises a UserError if the gallery is missing, damaged, or of another model.
    """

    address: str

    def info(self) -> IndexInfo:
        """Return metric, dimension, number of parts, fingerprint, weights and folder of images."""

    def describe(self) -> str:
        """Return one line on how it is searched."""

    def is_outdated(self, kind: str = "auto") -> bool:
        """Whether :meth:`Writer.optimize` would make searches faster."""

    def __len__(self) -> int: ...

    def search(
        self, features: np.ndarray | Embedding, top: int = 10, filter: Filter = NO_FILTER,
        *, exact: bool = False,
    ) -> list[list[Hit]]:  # fmt: skip
        """Return the ``top`` most similar images of each query, best first.

        Args:
            features: what the model's ``embed`` returned, or rows (Q, D) of
                :func:`~occluded_reid.modeling.similarity.make_query_rows`.
            top: Hits per query, at most.
            filter: Which images to search.
            exact: Compare every image, whatever approximation there is.
        """

    def look_up(self, ids: Sequence[int]) -> list[Hit]:
        """Return the images with these ids, in their order, without unknown ones."""

    def select(self, filter: Filter, limit: int | None = None) -> np.ndarray:
        """Return the ids of the images that ``filter`` accepts, at most ``limit``, ascending."""

    def versions_of(self, paths: Sequence[str]) -> dict[str, str | None]:
        """Return the version, as it was added, of each path that is there."""

    def withdrawn(self) -> set[str]:
        """Return the paths that were removed and not added again."""

    def cameras(self) -> list[str]:
        """Return the cameras' names in natural order: c2 before c10."""

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None if no image has one."""

    def writer(self) -> AbstractContextManager[Writer]:
        """Return the gallery's only writer; a UserError if another process writes."""


class Writer(Protocol):
    """Change a gallery; each call is done whole or not at all."""

    def add(
        self, items: Sequence[Item], features: np.ndarray | Embedding,
        visibility: np.ndarray | None = None,
        *, versions: Sequence[str | None] = (), overwrite: bool = False,
    ) -> list[int]:  # fmt: skip
        """Add n images and return their ids; once this returns, they survive a power cut.

        Args:
            items: The images.
            features: what the model's ``embed`` returned, or rows (n, D) of
                :func:`~occluded_reid.modeling.similarity.make_rows`.
            visibility: (n, P) beside rows; None if P is 0.
            versions: Of the image files, to notice when they are written anew.
            overwrite: Replace images of the same paths.

        Raises:
            UserError: A path that leads out of the gallery or, without ``overwrite``, is there
                already; arrays of another shape, features that are zero or not finite; a full
                disk. Nothing is added.
        """

    def update(self, items: Iterable[Item]) -> int:
        """Give the images of these paths another camera, time and identity; count the changes."""

    def remove(self, ids: Iterable[int], *, remember: bool = True) -> int:
        """Remove images; return how many there were.

        With ``remember``, the paths are :meth:`Store.withdrawn` until they are added again.
        """

    def compact(self, share: float = 0.0) -> None:
        """Free the space of removed images if they are more than this share."""

    def optimize(self, kind: str = "auto") -> None:
        """Build an approximation of all images, or drop it (``exact``)."""


def open_store(address: str | os.PathLike[str], fingerprint: str = "", gallery: str = "") -> Store:
    """Open a gallery that :func:`create_store` or ``search build`` created.

    Args:
        address: A folder, ``milvus://HOST:PORT/NAME`` or ``milvus:///FILE.db``.
        fingerprint: Of the model that embeds the queries; ``""`` skips the check.
        gallery: Where the images are now; ``""`` for where they were.

    Raises:
        UserError: No gallery, a damaged one, one of another version, or one of another model.

    >>> store = open_store("INDEX", model.fingerprint)  # doctest: +SKIP
    >>> store.search(model.embed(crops), top=5)[0][0].item.path  # doctest: +SKIP
    'camera1/0002.jpg'
    """
    return _resolve_class(address)(address, fingerprint, gallery)


def create_store(address: str | os.PathLike[str], **values: Any) -> Store:
    """Create an empty gallery; ``values`` are those of :class:`IndexInfo`."""
    return _resolve_class(address).create(address, **values)


def has_store(address: str | os.PathLike[str]) -> bool:
    """Whether there is a gallery, or a folder with anything in it, at an address."""
    return bool(_resolve_class(address).exists(address))


def search_indexes(
    indexes: Sequence[Store], features: np.ndarray | Embedding, top: int = 10,
    filter: Filter = NO_FILTER, *, exact: bool = False,
) -> list[list[Hit]]:  # fmt: skip
    """Search several galleries as one; see :meth:`Store.search`."""
    results = [index.search(features, top, filter, exact=exact) for index in indexes]
    return [
        list(islice(heapq.merge(*lists, key=lambda hit: -hit.similarity), top))
        for lists in zip(*results, strict=True)
    ]


def explain_other_model(address: str, info: IndexInfo, fingerprint: str) -> UserError:
    """Return the error for queries of another model than a gallery's."""
    return UserError(
        f"{address} was built by another model ({info.fingerprint}, weights "
        f"{info.weights or 'unknown'}) than the queries' ({fingerprint}): their vectors cannot be "
        "compared; use that model, or build the index anew"
    )


def _resolve_class(address: str | os.PathLike[str]) -> Any:
    if str(address).startswith("milvus:"):
        from gallery_search.store.milvus import MilvusStore

        return MilvusStore
    if "://" in str(address):
        raise UserError(f"{address} is no gallery; expected a folder, or {MILVUS}")
    from gallery_search.store.index import GalleryIndex

    return GalleryIndex
