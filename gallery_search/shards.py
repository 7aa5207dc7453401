"""One search over several indexes: a gallery that is divided over folders, disks or machines."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from gallery_search.gallery import EVERYTHING, GalleryIndex, Hit
from gallery_search.metadata import Filter


def merged(lists: Iterable[Sequence[Hit]], top: int) -> list[Hit]:
    """Return the best of several ranked lists; of equal hits, those of the first list first."""
    return list(islice(heapq.merge(*lists, key=lambda hit: -hit.similarity), top))


def search_shards(
    indexes: Sequence[GalleryIndex],
    features: np.ndarray,
    top: int = 10,
    filter: Filter = EVERYTHING,
    *,
    exact: bool = False,
) -> list[list[Hit]]:
    """Search all ``indexes`` as if they were one; see :meth:`GalleryIndex.search`."""
    found = [index.search(features, top, filter, exact=exact) for index in indexes]
    return [merged(lists, top) for lists in zip(*found, strict=True)]
