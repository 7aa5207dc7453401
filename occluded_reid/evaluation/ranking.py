"""Where the right answers stand in the ranking of each query.

Shapes: Q queries, V of them with a positive, G gallery images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from occluded_reid.evaluation.distances import Tiles, columns_at_once, rows_at_once, spans


class Ranking(NamedTuple):
    """How each query fared; queries without a positive in the gallery are left out.

    Attributes:
        query: (V,) positions of the V valid queries among all Q.
        positives: (V,) number of gallery images of the query's identity from other cameras.
        first_match: (V,) rank of the first of them, from 1.
        average_precision: (V,) in (0, 1].
        inverse_negative_penalty: (V,) positives / rank of the last of them, in (0, 1].
    """

    query: np.ndarray
    positives: np.ndarray
    first_match: np.ndarray
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray

    def rank_k(self, k: int) -> np.ndarray:
        """(V,) float: 1 where a right answer stands among the first ``k``."""
        return (self.first_match <= k).astype(np.float64)


class _Pairs(NamedTuple):
    """Queries of a block and gallery images of the same identity, query after query.

    Attributes:
        rows: (E,) the query's row in the block, ascending.
        images: (E,) positions in the gallery.
        ignored: (E,) whether the image is of the query's camera, too.
    """

    rows: np.ndarray
    images: np.ndarray
    ignored: np.ndarray

    def chosen(self, places: np.ndarray) -> _Pairs:
        """Return some of them, in that order."""
        return _Pairs(*(each[places] for each in self))


def rank_queries(
    distances: Tiles,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> Ranking:
    """Rank the gallery for each query under Market-1501's rule.

    Gallery images of the query's identity *and* camera are ignored. Equal distances keep the
    gallery's order. The rank of a positive is the number of gallery images before it: its place
    among the sorted distances, which need no positions beside them. A gallery of more than 131,072
    images is read twice, a part at a time: first the distances of the positives, then what stands
    before them.

    Args:
        distances: (Q, G), an array or what computes its tiles.
        query_ids: (Q,) identities; likewise the other three.

    Returns:
        One entry per query that has a positive.
    """
    queries, gallery = distances.shape
    images_of = _images_by_identity(gallery_ids)
    columns = columns_at_once(gallery)
    parts = list(spans(gallery, columns))
    found = [Ranking(*np.empty((3, 0), np.int64), *np.empty((2, 0)))]
    for block in spans(queries, rows_at_once(columns)):
        rows, images = images_of(query_ids[block])
        if len(rows):
            pairs = _Pairs(rows, images, gallery_cameras[images] == query_cameras[block][rows])
            tile = functools.lru_cache(maxsize=1)(lambda n, block=block: distances[block, parts[n]])
            found.append(_judged(block.start, *_ranks(tile, parts, pairs)))
    return Ranking(*map(np.concatenate, zip(*found, strict=True)))


def _images_by_identity(
    identities: np.ndarray,
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return a function from identities to pairs: which of them, and the position of an image."""
    order = np.argsort(identities, kind="stable")
    ordered = identities[order]

    def images_of(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = ordered.searchsorted(wanted)
        counts = ordered.searchsorted(wanted, "right") - starts
        rows = np.repeat(np.arange(len(wanted)), counts)
        return rows, order[
            np.arange(len(rows)) + np.repeat(starts - counts.cumsum() + counts, counts)
        ]

    return images_of


def _judged(first_query: int, rows: np.ndarray, ranks: np.ndarray) -> Ranking:
    """Judge a block of queries by the ranks of their positives, ascending in each row."""
    positives = np.bincount(rows)
    valid = np.flatnonzero(positives)
    positives = positives[valid]
    ends = positives.cumsum()
    starts = ends - positives
    hits = np.arange(1, len(rows) + 1) - np.repeat(starts, positives)
    precision = np.bincount(rows, hits / ranks)[valid] / positives
    penalty = positives / ranks[ends - 1]
    return Ranking(first_query + valid, positives, ranks[starts], precision, penalty)


def _ranks(
    tile: Callable[[int], np.ndarray], parts: list[slice], pairs: _Pairs
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (n,) of all positives, ascending, and their ranks from 1, ascending in a row.

    Args:
        tile: the distances of the block's queries to a part of the gallery, by its number.
        parts: where the parts of the gallery begin and end.
        pairs: positives and ignored images of the block's queries.
    """
    values = np.empty(len(pairs.rows), tile(0).dtype)
    for number, part in enumerate(parts):
        inside = np.flatnonzero((part.start <= pairs.images) & (pairs.images < part.stop))
        values[inside] = tile(number)[pairs.rows[inside], pairs.images[inside] - part.start]
    order = np.lexsort((pairs.images, values, pairs.rows))
    pairs, values = pairs.chosen(order), values[order]
    ignored = pairs.ignored.cumsum()  # up to here, of this query and of those before
    ignored -= np.insert(ignored, 0, 0)[pairs.rows.searchsorted(pairs.rows)]
    positive = np.flatnonzero(~pairs.ignored)
    pairs, values = pairs.chosen(positive), values[positive]
    ranks = 1 - ignored[positive]
    for number, part in enumerate(parts):
        ranks += _before(tile(number), part.start, pairs, values)
    return pairs.rows, ranks


def _before(tile: np.ndarray, start: int, pairs: _Pairs, values: np.ndarray) -> np.ndarray:
    """Return how many images of a part of the gallery stand before each of some images: (n,).

    Args:
        tile: the block's distances to this part.
        start: where the part begins.
        pairs: the images (n,).
        values: (n,) their distances, ascending in each row.
    """
    smaller, not_larger = np.empty((2, len(values)), np.int64)
    bounds = pairs.rows.searchsorted(np.arange(len(tile) + 1)).tolist()

    def count(rows: slice) -> None:
        ordered = np.empty_like(tile[0])
        for row in range(rows.start, rows.stop):
            own = slice(bounds[row], bounds[row + 1])
            if own.start < own.stop:
                ordered[:] = tile[row]
                ordered.sort()
                smaller[own] = ordered.searchsorted(values[own])
                not_larger[own] = ordered.searchsorted(values[own], "right")

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:  # NumPy sorts without the interpreter's lock
        list(pool.map(count, spans(len(tile), math.ceil(len(tile) / threads))))
    places = pairs.images - start
    inside = (places >= 0) & (places < tile.shape[1])
    for tied in np.flatnonzero(not_larger - smaller > inside).tolist():
        in_front = tile[pairs.rows[tied], : max(0, places[tied])]
        smaller[tied] += np.count_nonzero(in_front == values[tied])
    return smaller
