"""Where the right answers stand in the ranking of each query.

Shapes: Q queries, V of them with a positive, G gallery images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from occluded_reid.evaluation.similarity import Tiles, columns_at_once, rows_at_once, spans


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


class _Case(NamedTuple):
    """A query that can be judged: its row in the tile and its identity's gallery images.

    Of ``images`` the first ``right`` are positives, the others are of the query's camera: ignored.
    """

    query: int
    row: int
    images: np.ndarray
    right: int


def rank_queries(
    distances: Tiles,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> Ranking:
    """Rank the gallery for each query under Market-1501's rule.

    Gallery images of the query's identity *and* camera are ignored. Equal distances keep the
    gallery's order. Nothing is sorted: the rank of a positive is the number of gallery images
    before it. A gallery of more than 131,072 images is read twice, a part at a time: first the
    distances of the positives, then what stands before them.

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
    found: list[tuple[_Case, np.ndarray]] = []
    for block in spans(queries, rows_at_once(columns)):
        cases = []
        for row, query in enumerate(range(block.start, block.stop)):
            images = images_of(query_ids[query])
            ignored = gallery_cameras[images] == query_cameras[query]
            if not ignored.all():
                ordered = np.concatenate([images[~ignored], images[ignored]])
                cases.append(_Case(query, row, ordered, len(images) - int(ignored.sum())))
        tile = functools.lru_cache(maxsize=1)(lambda n, block=block: distances[block, parts[n]])
        found += zip(cases, _ranks(tile, parts, cases), strict=True)
    rows = [_judged(case, ranks) for case, ranks in found]
    columns_of = list(zip(*rows, strict=True)) if rows else [()] * 5
    kinds = (np.int64, np.int64, np.int64, np.float64, np.float64)
    return Ranking(*(np.array(each, kind) for each, kind in zip(columns_of, kinds, strict=True)))


def _images_by_identity(identities: np.ndarray) -> Callable[[int], np.ndarray]:
    """Return a function from an identity to the positions of its images, ascending."""
    order = np.argsort(identities, kind="stable")
    names, starts = np.unique(identities[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(names) else []
    groups = dict(zip(names.tolist(), parts, strict=True))
    nobody = np.empty(0, np.int64)
    return lambda identity: groups.get(int(identity), nobody)


def _judged(case: _Case, ranks: np.ndarray) -> tuple[int, int, int, float, float]:
    hits = np.arange(1, case.right + 1)
    precision = float(np.mean(hits / ranks))
    return case.query, case.right, int(ranks[0]), precision, case.right / int(ranks[-1])


def _ranks(
    tile: Callable[[int], np.ndarray], parts: list[slice], cases: list[_Case]
) -> list[np.ndarray]:
    """Return the ranks (from 1, ascending) of each case's positives.

    Args:
        tile: the distances of the block's queries to a part of the gallery, by its number.
        parts: where the parts of the gallery begin and end.
        cases: the block's queries that can be judged.
    """
    values = [np.empty(len(case.images), tile(0).dtype) for case in cases]
    for number, part in enumerate(parts):
        for case, value in zip(cases, values, strict=True):
            inside = (part.start <= case.images) & (case.images < part.stop)
            value[inside] = tile(number)[case.row, case.images[inside] - part.start]
    before = [-_ignored_before(case, value) for case, value in zip(cases, values, strict=True)]
    for number, part in enumerate(parts):
        smaller = np.empty(part.stop - part.start, bool)
        for case, value, counts in zip(cases, values, before, strict=True):
            row = tile(number)[case.row]
            splits = np.clip(case.images[: case.right] - part.start, 0, len(row)).tolist()
            for place, split in enumerate(splits):
                np.less_equal(row[:split], value[place], out=smaller[:split])
                np.less(row[split:], value[place], out=smaller[split:])
                counts[place] += np.count_nonzero(smaller)
    return [np.sort(counts) + 1 for counts in before]


def _ignored_before(case: _Case, values: np.ndarray) -> np.ndarray:
    """Return for each positive how many ignored images the count of its row would hold."""
    right = case.right
    value, position = values[:right, None], case.images[:right, None]
    ties = (values[right:] == value) & (case.images[right:] < position)
    return np.count_nonzero((values[right:] < value) | ties, axis=1)
