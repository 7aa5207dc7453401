"""Rank the gallery for each query, under the rules of Market-1501.

* **Positives** of a query are the gallery images of its identity from other cameras. A query
  without a positive is left out of all metrics.
* **Junk**: gallery images of the query's identity *and* camera, and copies of the query's own
  image under any name, identity or camera, are removed before ranks are counted. They count
  neither as hits nor as misses.
* **Ties** (``TEST.TIES``): ``against`` ranks a positive behind all negatives at its distance, so
  that a model gains nothing by telling no images apart. ``gallery_order`` keeps the order of the
  gallery at equal distances, as a stable sort does and fast-reid's tables assume; the names of the
  files then decide. Distances that rounding alone makes different are no ties.
* **Rank-k** (CMC): 1 if the first positive is among the first k images, else 0.
* **Average precision** (AP; mAP is its mean over queries): the mean over the positives of the
  precision at their rank, (number of positives up to this rank) / rank. It is not interpolated.
* **Inverse negative penalty** (INP; mINP is its mean): number of positives / rank of the last one.

Shapes: Q queries, V of them with a positive, G gallery images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from occluded_reid.utils.errors import UserError

if TYPE_CHECKING:
    from occluded_reid.evaluation.distances import Tiles


class Ranking(NamedTuple):
    """The result of each valid query, which is one with a positive: arrays of (V,)."""

    query: np.ndarray  # indices of the valid queries among all Q
    positives: np.ndarray  # number of positives
    first_match: np.ndarray  # rank of the first positive, from 1
    average_precision: np.ndarray  # in (0, 1]
    inverse_negative_penalty: np.ndarray  # in (0, 1]

    def rank_k(self, k: int) -> np.ndarray:
        """Return (V,) float: 1 where a positive is among the first ``k`` images."""
        return (self.first_match <= k).astype(np.float64)

    def compute_metrics(self) -> dict[str, np.ndarray]:
        """Return Rank-1/3/5/10, AP and INP of each query by metric, (V,) in per cent."""
        metrics = {f"Rank-{k}": self.rank_k(k) for k in (1, 3, 5, 10)}
        metrics |= {"mAP": self.average_precision, "mINP": self.inverse_negative_penalty}
        return {name: 100 * values for name, values in metrics.items()}


def rank_queries(
    distances: Tiles, query_ids: np.ndarray, gallery_ids: np.ndarray,
    query_cameras: np.ndarray, gallery_cameras: np.ndarray,
    *, copies: Mapping[int, np.ndarray] | None = None, ties: str = "against",
) -> Ranking:  # fmt: skip
    """Rank the gallery for each query; the rules are those of the module.

    >>> ids, cameras = np.array([7, 5, 7]), np.array([2, 2, 3])
    >>> ranking = rank_queries(np.array([[0.1, 0.2, 0.3]]), ids[:1], ids, np.array([1]), cameras)
    >>> ranking.average_precision.round(3)  # positives at ranks 1 and 3: (1/1 + 2/3) / 2
    array([0.833])

    Args:
        distances: (Q, G), an array or tiles computed on demand.
        query_ids, query_cameras: (Q,).
        gallery_ids, gallery_cameras: (G,).
        copies: indices of the gallery images that are the query's own, by query.
        ties: ``against`` or ``gallery_order``.

    Raises:
        UserError: a distance is not finite.
    """
    # imports PyTorch, which reading a Ranking does not need
    from occluded_reid.evaluation.distances import choose_tile_rows, split_range

    queries, gallery = distances.shape
    order = np.argsort(gallery_ids, kind="stable")
    starts = gallery_ids.searchsorted(query_ids, sorter=order)
    stops = gallery_ids.searchsorted(query_ids, "right", sorter=order)
    results, copies = [], copies or {}
    for block in split_range(queries, choose_tile_rows(gallery)):
        tile = distances[block, :]
        for query, row in enumerate(tile, start=block.start):
            images = order[starts[query] : stops[query]]  # of the same identity
            is_junk = gallery_cameras[images] == query_cameras[query]
            junk = images[is_junk]
            if query in copies:
                is_junk |= np.isin(images, copies[query])
                junk = np.union1d(junk, copies[query])
            if is_junk.all():
                continue
            ranks = _rank_positives(row, images[~is_junk], junk, ties)
            count = len(ranks)
            precision = np.mean(np.arange(1, count + 1) / ranks)
            results.append((query, count, ranks[0], precision, count / ranks[-1]))
    columns = np.array(results).reshape(-1, 5).T
    return Ranking(*columns[:3].astype(np.int64), *columns[3:])


def _rank_positives(
    row: np.ndarray, positives: np.ndarray, junk: np.ndarray, ties: str
) -> np.ndarray:
    """Return the ranks of the positives, from 1, ascending.

    A rank is found by its distance among the sorted distances (G,): no indices are sorted.
    """
    row = row.copy()
    row[junk] = np.inf
    ordered = np.sort(row)  # ends with the junk and NaN
    if not (np.isfinite(ordered[0]) and np.isfinite(ordered[-1 - len(junk)])):
        raise UserError(
            "distances are not finite: the features overflow float32; the weights are broken"
        )
    not_larger = ordered.searchsorted(row[positives], "right")
    if ties == "against":
        not_larger.sort()
        hits = np.arange(1, len(not_larger) + 1)
        return not_larger - not_larger.searchsorted(not_larger, "right") + hits
    ranks = 1 + ordered.searchsorted(row[positives])
    for tied in np.flatnonzero(not_larger > ranks):
        before = row[: positives[tied]]
        ranks[tied] += np.count_nonzero(before == row[positives[tied]])
    return np.sort(ranks)
